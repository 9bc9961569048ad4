"""What a federated server sees, made by hand, for tests of gradient matching."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ppbench.attack import check_reconstruction
from ppbench.attacks.gradient_matching import GradientMatching
from ppbench.data import Images
from ppbench.defense import Defense, Keys, draw_keys
from ppbench.plugins import build
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.updates import client_update
from ppbench.victim import start
from ppbench.view import Algorithm, Sealed, View

SHAPE = (3, 16, 16)
CLASSES = 5
CONV = Recipe(kwargs={"width": 8})
VIT = Recipe("timm:vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2})
MLP = Recipe("ppbench.nets:mlp", {"side": 16, "width": 32})
QUICK = GradientMatching(steps=8, rehearsals=0)
LONGER = replace(QUICK, steps=120)


def smooth(count: int, seed: int) -> Images:
    coarse = torch.rand(count, 3, 4, 4, generator=generator(seed))
    pixels = nn.functional.interpolate(coarse, SHAPE[1:], mode="bicubic").clamp(0, 1)
    return Images(pixels, torch.arange(count) % CLASSES, torch.arange(count))


def attacked(recipe: Recipe = CONV, defense: str = "none", targets: int = 4, batch: int = 2, bn_train: bool = False,
             local_steps: int = 1, spoilt: float = 0.0, smoothing: float = 0.0,
             **params: Any) -> tuple[View, Tensor]:
    """Return a federated server's view, and the released images it is after."""
    ref, private, public = Ref("defenses", defense, params), smooth(targets, 1), smooth(40, 2)
    made: Defense = build(ref)
    scope = made.key_scopes[0] if made.key_scopes else None
    keys: Keys | None = draw_keys(made, scope, targets, SHAPE, generator(3))
    release = made.protect(private, keys, generator(4))
    with seeded(5):
        model = start(recipe, made, keys, SHAPE, CLASSES)
    update = client_update(model, release.images, release.labels, batch=batch, local_steps=local_steps,
                           learning_rate=0.02, bn_train=bn_train, label_smoothing=smoothing)
    update = made.protect_update(update, generator(8))
    if spoilt:
        values = {name: value + spoilt * value.std() * torch.randn(value.shape, generator=generator(6))
                  for name, value in update.values.items()}
        update = replace(update, values=values)
    granted = frozenset({"model", "gradients", "public", "algorithm"})
    return View(Sealed(granted, SHAPE, release.shape, targets, CLASSES, public=public, model=model, update=update,
                       algorithm=Algorithm(ref, scope, 0))), release.images


def run(attack: GradientMatching, view: View) -> Any:
    found = attack.run(view, {}, generator(0))
    check_reconstruction(found, view)
    return found


def decibels(estimate: Tensor, true: Tensor) -> Tensor:
    return -10 * (estimate - true).square().flatten(1).mean(1).log10()
