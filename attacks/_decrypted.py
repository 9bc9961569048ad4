"""A release as it looks to whoever holds the key: as if it were of no cipher at all."""

from dataclasses import replace

import torch

from ppbench.data import Images
from ppbench.defense import Release, draw_keys
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.view import Algorithm, View

TRIED = 4  # images that are encrypted and decrypted with keys of one's own
ROUNDING = 1 / 255


def decrypted(view: View) -> View:
    """Return the view after decryption, its defense `none`.

    It is returned as it is where no key is granted, there is none, or decryption does not give images back.
    """
    if "key" not in view.granted or view.keys is None or not _invertible(view):
        return view
    release = view.release
    images = view.algorithm.defense.invert(release, view.keys, view.image_shape)
    plain = Release(images, release.labels, release.source)
    algorithm = Algorithm(Ref("defenses", "none"), None, view.algorithm.quantise)
    return View(replace(view.sealed, release=plain, released_shape=view.image_shape, keys=None, algorithm=algorithm))


def _invertible(view: View) -> bool:
    """Say whether images of one's own come back from under a key of one's own."""
    defense, rng = view.algorithm.defense, generator(0)
    if not defense.partnered:
        return False
    rows = torch.arange(TRIED)
    own = Images(torch.rand(TRIED, *view.image_shape, generator=rng), rows * 0, rows)
    keys = draw_keys(defense, "image", TRIED, view.image_shape, rng)
    back = defense.invert(defense.protect(own, keys, rng), keys, view.image_shape)
    return back.shape == own.pixels.shape and bool((back - own.pixels).abs().max() <= ROUNDING)
