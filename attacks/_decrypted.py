"""A release as it looks to whoever holds the key: as if it were of no cipher at all."""

from dataclasses import replace

from ppbench.defense import Release
from ppbench.ref import Ref
from ppbench.view import Algorithm, View


def decrypted(view: View) -> View:
    """Return the view after decryption, its defense `none`; as it is where no key is granted, or there is none."""
    if "key" not in view.granted or view.keys is None:
        return view
    release, algorithm = view.release, view.algorithm
    images = algorithm.defense.invert(release, view.keys, view.image_shape)
    plain = Release(images, release.labels, release.source, clients=release.clients)
    return View(replace(view.sealed, release=plain, released_shape=view.image_shape, keys=None,
                        algorithm=Algorithm(Ref("defenses", "none"), None, algorithm.quantise, algorithm.clients)))
