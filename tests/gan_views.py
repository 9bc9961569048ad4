"""Views and trained generators for the tests of GAN inversion."""

from typing import Any

import torch
from torch import Tensor

from ppbench.attacks.gan_inversion import GanInversion
from ppbench.data import Images, Shape
from ppbench.defense import draw_keys
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.view import Algorithm, Sealed, View, quantised

NONE = Ref("defenses", "none")
CIPHERS = [Ref("defenses", "patch-shuffle", {"patch": 4}), Ref("defenses", "block-scrambling", {"block": 4})]
QUICK = GanInversion(steps=4, restarts=2, hold=3, prior_steps=3)


def smooth(count: int, shape: Shape, seed: int = 0) -> Images:
    """Smooth random images in 8 bit, of 2 classes: the second is dark."""
    channels, height, width = shape
    labels = torch.arange(count) % 2
    coarse = torch.rand(count, channels, 4, 4, generator=generator(seed)) * (1 - 0.6 * labels[:, None, None, None])
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return Images((pixels * 255).round() / 255, labels, torch.arange(count))


def view_of(private: Images, public: Images, ref: Ref = NONE, targets: int = 3, granted: str = "labels") -> View:
    """What ciphertext-only grants of images protected as the runner would."""
    defense = build(ref)
    scope = defense.key_scopes[0] if defense.key_scopes else None
    keys = draw_keys(defense, scope, len(private), private.shape, generator(1))
    release = quantised(defense.protect(private, keys, generator(2)), 8)
    return View(Sealed(granted=frozenset({"images", "public", "algorithm", granted}), image_shape=private.shape,
                       released_shape=release.shape, n_targets=targets, classes=2, labels=private.labels[:targets],
                       release=release, target_rows=torch.arange(targets), public=public,
                       algorithm=Algorithm(ref, scope, 8)))


def toy(shape: Shape = (3, 16, 16), ref: Ref = NONE, **more: Any) -> View:
    return view_of(smooth(6, shape, 1), smooth(32, shape), ref, **more)


def trained(attack: GanInversion, view: View) -> dict[str, dict[str, Tensor]]:
    return {name: prior.train(prior.seen(view), generator(5)) for name, prior in attack.priors(view).items()}
