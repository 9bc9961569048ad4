"""What estimators learn from: pairs made with keys of one's own, or known under the victim's key."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ppbench.attacks._simulate import Simulated, known_pairs, simulate
from ppbench.data import Images
from ppbench.minibatches import shuffled_passes
from ppbench.seeding import spawn
from ppbench.view import View

HELD = 4  # every so manieth public image is held out
TOGETHER = 8  # minibatches whose images are protected in one call
FORGOTTEN = 0.25  # share of the training images whose label is withheld: labels help, but are not needed
SHIFT = 8  # images are moved by up to one part in so many of their side


def protected_anew(view: View, images: Images, batch: int, steps: int, rng: torch.Generator) -> Iterator[Simulated]:
    """Yield minibatches of images moved, mirrored and protected with fresh keys."""
    for rows in shuffled_passes(len(images), batch, steps, rng).split(TOGETHER):
        some = images[rows.flatten()]
        made = simulate(view, replace(some, pixels=augmented(some.pixels, rng)), spawn(rng))
        for k in torch.randperm(len(made), generator=rng).chunk(len(rows)):
            yield _forgetting(made[k], rng)


def fixed(some: Simulated, batch: int, steps: int, rng: torch.Generator) -> Iterator[Simulated]:
    """Yield minibatches of given pairs."""
    for rows in shuffled_passes(len(some), batch, steps, rng):
        yield _forgetting(some[rows], rng)


def augmented(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Move every image by a few pixels, mirrored at its border, and mirror half of them left to right."""
    n, _, h, w = pixels.shape
    down, across = h // SHIFT, w // SHIFT
    padded = F.pad(pixels, (across, across, down, down), mode="reflect")
    top = torch.randint(2 * down + 1, (n, 1), generator=rng) + torch.arange(h)
    left = torch.randint(2 * across + 1, (n, 1), generator=rng) + torch.arange(w)
    left = torch.where(torch.rand(n, 1, generator=rng) < 0.5, left.flip(1), left)
    return padded[torch.arange(n)[:, None, None], :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2).contiguous()


def mirrored(images: Images) -> Images:
    """Mirror images left to right."""
    return replace(images, pixels=images.pixels.flip(3))


def _forgetting(some: Simulated, rng: torch.Generator) -> Simulated:
    unknown = torch.rand(len(some), generator=rng) < FORGOTTEN
    return replace(some, labels=torch.where(unknown, -1, some.labels))


def with_a_key_each(view: View) -> View:
    """Draw a key for every image, whatever the scope: the victim's key is one among all, and none is seen twice."""
    if view.algorithm.key_scope is None:
        return view
    algorithm = replace(view.algorithm, key_scope="image", clients=1)
    return View(replace(view.sealed, algorithm=algorithm))


def telling_pairs(view: View, client: int) -> Simulated | None:
    """Return the known pairs where they tell of the targets' key; keys of one's own tell as much otherwise."""
    pairs = known_pairs(view, client) if view.algorithm.key_scope in ("client", "global") else None
    return pairs if pairs is not None and len(pairs) >= HELD else None


def moved(view: View) -> bool:
    """Say whether the view's defense moves blocks."""
    pieces = view.algorithm.defense.pieces(view.image_shape)
    return pieces is not None and pieces.moved


def learnt(count: int) -> Tensor:
    """Return which of so many images to learn from: all but those held out (a single one is both)."""
    rows = torch.arange(count)
    return rows[rows % HELD != 0] if count > 1 else rows


def held_out(count: int) -> Tensor:
    """Return which of so many images decide between estimates."""
    return torch.arange(0, count, HELD)


def halves(pairs: Simulated) -> tuple[Simulated, Simulated]:
    """Return the pairs to learn from and those held out (a single pair is both)."""
    return pairs[learnt(len(pairs))], pairs[held_out(len(pairs))]
