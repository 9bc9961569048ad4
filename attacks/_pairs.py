"""What estimators learn from: pairs made with keys of one's own, or known under the victim's key."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ppbench.attacks._simulate import ANYONE, NOBODY, Simulated, known_pairs
from ppbench.data import Images
from ppbench.view import View

HELD = 4  # every so manieth public image is held out,
ENOUGH = 1024  # but not many more than these
SHIFT = 8  # images are moved by up to one part in so many of their side


def augmented(pixels: Tensor, rng: torch.Generator, turned: bool = False) -> Tensor:
    """Move every image by a few pixels, mirrored at its border, and mirror half of them left to right.

    Args:
        pixels: `[n, C, H, W]`.
        rng: draws.
        turned: turn half of them upside down as well.
    """
    n, _, h, w = pixels.shape
    down, across = h // SHIFT, w // SHIFT
    padded = F.pad(pixels, (across, across, down, down), mode="reflect")
    top = torch.randint(2 * down + 1, (n, 1), generator=rng) + torch.arange(h)
    left = torch.randint(2 * across + 1, (n, 1), generator=rng) + torch.arange(w)
    left = torch.where(torch.rand(n, 1, generator=rng) < 0.5, left.flip(1), left)
    if turned:
        top = torch.where(torch.rand(n, 1, generator=rng) < 0.5, top.flip(1), top)
    return padded[torch.arange(n)[:, None, None], :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2).contiguous()


def mirrored(images: Images) -> Images:
    """Mirror images left to right."""
    return replace(images, pixels=images.pixels.flip(3))


def with_a_key_each(view: View) -> View:
    """Draw a key for every image, whatever the scope: the victim's key is one among all, and none is seen twice."""
    if view.algorithm.key_scope is None:
        return view
    algorithm = replace(view.algorithm, key_scope="image", clients=1)
    return View(replace(view.sealed, algorithm=algorithm))


def with_one_key(view: View) -> View:
    """Draw one key for all images of a call."""
    return View(replace(view.sealed, algorithm=replace(view.algorithm, key_scope="global", clients=1)))


def telling_pairs(view: View, client: int) -> Simulated | None:
    """Return the known pairs where they tell of the targets' key; keys of one's own tell as much otherwise."""
    pairs = known_pairs(view, client) if view.algorithm.key_scope in ("client", "global") else None
    return pairs if pairs is not None and len(pairs) >= HELD else None


def targets_by_key(view: View) -> dict[int, Tensor]:
    """Return which targets `[n]` bool each client sent of whose key known pairs tell; all others as one, or all."""
    senders = view.release.clients
    if "pairs" not in view.granted or senders is None:
        return {ANYONE: torch.ones(view.n_targets, dtype=torch.bool)}
    senders = senders[view.target_rows]
    found: dict[int, Tensor] = {}
    for client in senders.unique().tolist():
        key, mine = client if telling_pairs(view, client) is not None else NOBODY, senders == client
        found[key] = found[key] | mine if key in found else mine
    return found


def as_far_as_pairs_tell(view: View, client: int) -> View:
    """Take the known pairs out of a view, where they tell nothing of the targets' key."""
    return view if telling_pairs(view, client) is not None else view.only(view.granted - {"pairs"})


def moved(view: View) -> bool:
    """Say whether the view's defense moves blocks."""
    pieces = view.algorithm.defense.pieces(view.image_shape)
    return pieces is not None and pieces.moved


def learnt(count: int) -> Tensor:
    """Return which of so many images to learn from: all but those held out (a single one is both)."""
    rows = torch.arange(count)
    return rows[rows % _stride(count) != 0] if count > 1 else rows


def held_out(count: int) -> Tensor:
    """Return which of so many images decide between estimates."""
    return torch.arange(0, count, _stride(count))


def _stride(count: int) -> int:
    return max(HELD, count // ENOUGH)


def halves(pairs: Simulated) -> tuple[Simulated, Simulated]:
    """Return the pairs to learn from and those held out (a single pair is both)."""
    return pairs[learnt(len(pairs))], pairs[held_out(len(pairs))]
