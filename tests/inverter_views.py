"""Inverters that learn little, and views for them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppbench.attack import check_reconstruction
from ppbench.attacks._inverter import InverterAttack, Problem
from ppbench.attacks.unet_inverter import UnetInverter
from ppbench.attacks.vit_inverter import VitInverter
from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.defense import Defense, Keys, draw_keys
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.view import Algorithm, Pairs, Sealed, View, quantised

QUICK: list[InverterAttack] = [VitInverter(steps=3, batch=8, width=16, depth=1),
                               UnetInverter(steps=3, batch=8, width=8, depth=1)]
NONE, SHUFFLE = Ref("defenses", "none"), Ref("defenses", "patch-shuffle", {"patch": 4})
CIPHER, MIXUP = Ref("defenses", "block-scrambling", {"block": 4}), Ref("defenses", "mixup", {"patch": 4})
both = pytest.mark.parametrize("attack", QUICK, ids=["vit", "unet"])


def smooth(count: int, shape: Shape, seed: int = 0) -> Images:
    """Smooth random images in 8 bit, of 2 classes."""
    channels, height, width = shape
    coarse = torch.rand(count, channels, 4, 4, generator=generator(seed))
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return Images((pixels * 255).round() / 255, torch.arange(count) % 2, torch.arange(count))


def view_of(private: Images, public: Images, defense: Defense, ref: Ref, targets: int = 3, pairs: int = 0,
            scope: Any = None, labels: bool = True) -> View:
    """What the threat model grants of images protected as the runner would."""
    scope = scope or (defense.key_scopes[0] if defense.key_scopes else None)
    keys = draw_keys(defense, scope, len(private), private.shape, generator(1))
    release = quantised(defense.protect(private, keys, generator(2)), 8)
    known = None
    if pairs:
        one = None if keys is None else Keys(keys.values, torch.zeros(pairs, dtype=torch.int64))
        plain = public.pixels[:pairs]
        known = Pairs(plain, defense.query(plain, one, generator(3)))
    granted = {"images", "public", "algorithm"} | ({"labels"} if labels else set()) | ({"pairs"} if pairs else set())
    return View(Sealed(granted=frozenset(granted), image_shape=private.shape, released_shape=release.shape,
                       n_targets=targets, classes=2, labels=private.labels[:targets] if labels else None,
                       release=release, target_rows=torch.arange(targets), public=public, pairs=known,
                       algorithm=Algorithm(ref, scope, 8)))


def toy(shape: Shape = (3, 16, 16), ref: Ref = NONE, public: int = 24, **more: Any) -> View:
    return view_of(smooth(6, shape, 1), smooth(public, shape), build(ref), ref, **more)


def with_defense(view: View, defense: Defense) -> View:
    """Put a defense that has no name in the place of the view's own."""
    assert view.sealed.algorithm is not None
    algorithm = replace(view.sealed.algorithm)
    algorithm.__dict__["defense"] = defense  # where the cached property looks
    return View(replace(view.sealed, algorithm=algorithm))


def trained(attack: InverterAttack, view: View, seed: int = 1) -> dict[str, Tensors]:
    return {name: prior.train(prior.seen(view), generator(seed)) for name, prior in attack.priors(view).items()}


def result(attack: InverterAttack, view: View, seed: int = 1) -> Tensor:
    found = attack.run(view, trained(attack, view, seed), generator(2))
    check_reconstruction(found, view)
    assert found.objective is not None
    assert found.objective.isfinite().all()
    assert found.aligned == view.has_partner
    return found.images


def network(attack: InverterAttack, problem: Problem, seed: int = 0) -> nn.Module:
    """Build a network whose last layer is not zero any more."""
    with seeded(seed):
        net = attack.prior().network(problem)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)
    return net.eval()
