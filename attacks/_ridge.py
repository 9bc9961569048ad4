"""Linear MMSE: the best linear estimate of a plain image from its released one, learnt from pairs.

Two estimators, alone or one on top of the other, chosen by their error on pairs held out:

- local: one linear map, shared by all places, from a window of released pixels to the block of plain pixels in its
  middle; block and window sides are tried out, so that maps that differ by the place inside a block are found;
- global: ridge regression of all plain pixels on all released ones, or of what the local map leaves over.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.seeding import generator

MARGINS = (0, 1, 2, 3, 4, 6, 8, 12)  # released pixels around a block, tried in this order
MAX_BLOCK = 1024  # values of a plain block
MAX_WINDOW = 900  # values of a window
SCREEN, REFIT = 3 * 10**8, 10**10  # multiplications for the moments of one local candidate: to rank it, to keep it
SHORTLIST = 2  # local candidates that are fitted again with all there is
MAX_HELD = 2**22  # plain values on which candidates are compared
MAX_GLOBAL = 2**24  # weights of the global estimator
TRIAL = 1024  # images, or values of one, beyond which a global estimator must first prove itself on so many images
ROUNDING = 1 / (12 * 255**2)  # mean squared error of 8 bit: nothing is left to explain below it
_CHUNK = 2**22  # values held at once
_LAMBDAS = torch.logspace(-10, 2, 37, dtype=torch.float64)  # in units of the mean eigenvalue


def fit(released: Tensor, plain: Tensor, held_released: Tensor, held_plain: Tensor) -> Tensors:
    """Learn to estimate plain images from released ones; never worse on the held pairs than the mean image.

    Args:
        released: `[n, c, h, w]` in [0, 1], n >= 1.
        plain: `[n, C, H, W]` in [0, 1], their partners.
        held_released: `[m, c, h, w]`, pairs that decide between estimators, m >= 1.
        held_plain: `[m, C, H, W]`.

    Returns:
        What `apply` reads: always `mean`; `local_*` and `global_*` where they lower the error.
    """
    keep = max(1, min(len(held_plain), MAX_HELD // held_plain[0].numel()))
    pairs = Pairs(released, plain, held_released[:keep], held_plain[:keep])
    found: Tensors = {"mean": plain.mean(0)}
    found = _better(found, _best_local(pairs), pairs)
    if pairs.error(found) < ROUNDING:
        return found
    beyond = pairs.less(found)
    if min(len(plain), released[0].numel()) > TRIAL:
        # the whole regression may take minutes: only where twice the pairs show that more of them help
        half, trial = (found | _fit_global(beyond.first(count)) for count in (TRIAL // 2, TRIAL))
        if pairs.error(trial) > 0.98 * pairs.error(half):
            return _better(found, trial, pairs)
    return _better(found, found | _fit_global(beyond), pairs)


def again(found: Tensors, released: Tensor, plain: Tensor, held_released: Tensor, held_plain: Tensor) -> Tensors:
    """Learn an estimator of the same form as a given one from other pairs, without trying out any other form.

    Args:
        found: by `fit`.
        released: as those of `fit`.
        plain: as those of `fit`.
        held_released: pairs that decide how much is shrunk.
        held_plain: as those of `fit`.
    """
    pairs = Pairs(released, plain, held_released, held_plain)
    other: Tensors = {"mean": plain.mean(0)}
    if "local_weight" in found:
        other |= _fit_local(_cell(found, plain.shape[1]), pairs, SCREEN)
    return other | _fit_global(pairs.less(other)) if "global_left" in found else other


def effort(found: Tensors, pairs: int, shape: Shape) -> int:
    """Return how many multiplications `again` takes, roughly, for so many pairs of plain images of `shape`."""
    total = 0
    if "local_weight" in found:
        total += 2 * SCREEN + 10 * found["local_weight"][0].numel()**3  # eigenvectors
    if "global_left" in found:
        values = len(found["global_left"])
        fewer = min(pairs, values)
        total += fewer * (pairs + 4 * fewer) * (values + math.prod(shape))
    return total


def apply(found: Tensors, released: Tensor, shape: Shape) -> Tensor:
    """Estimate plain images `[n, C, H, W]` of `shape`, in [0, 1], from released ones `[n, c, h, w]`."""
    return _estimate(found, released, shape).clamp(0, 1)


def describe(found: Tensors) -> str:
    """Say in a few words which estimator was chosen."""
    parts = []
    if "local_weight" in found:
        kernel = found["local_weight"]
        parts.append(f"{_block(kernel, len(found['mean']))} px blocks from {kernel.shape[-1]} px windows")
    if "global_left" in found:
        parts.append(f"all pixels at rank {found['global_left'].shape[1]}")
    return "linear: " + (" + ".join(parts) or "the mean image")


@dataclass(frozen=True)
class Pairs:
    """Pairs to learn from, and pairs held out to decide by."""

    released: Tensor
    plain: Tensor
    held_released: Tensor
    held_plain: Tensor

    def error(self, found: Tensors) -> float:
        """Return the mean squared error of an estimator on the held pairs."""
        return float((apply(found, self.held_released, _shape_of(self.plain)) - self.held_plain).square().mean())

    def less(self, found: Tensors) -> "Pairs":
        """Return the pairs with what an estimator leaves over in place of the plain images."""
        shape = _shape_of(self.plain)
        return Pairs(self.released, self.plain - _estimate(found, self.released, shape),
                     self.held_released, self.held_plain - _estimate(found, self.held_released, shape))

    def first(self, count: int) -> "Pairs":
        """Return only so many of the pairs to learn from."""
        return Pairs(self.released[:count], self.plain[:count], self.held_released, self.held_plain)


def _better(simple: Tensors, other: Tensors | None, pairs: Pairs) -> Tensors:
    """Return the estimator of lower error on the held pairs; what is no clear gain is not worth its weights."""
    return other if other is not None and pairs.error(other) < 0.9999 * pairs.error(simple) else simple


def _estimate(found: Tensors, released: Tensor, shape: Shape) -> Tensor:
    rows = max(1, _CHUNK // max(released[0].numel(), 1))
    return torch.cat([_estimate_rows(found, some, shape) for some in released.split(rows)])


def _estimate_rows(found: Tensors, released: Tensor, shape: Shape) -> Tensor:
    if "local_weight" in found:
        estimate = _apply_local(found, released, shape)
    else:
        estimate = found["mean"].expand(len(released), *shape)
    if "global_left" in found:
        centred = released.flatten(1) - found["global_centre"]
        more = (centred @ found["global_left"]) @ found["global_right"] + found["global_offset"]
        estimate = estimate + more.reshape(estimate.shape)
    return estimate


def _shape_of(images: Tensor) -> Shape:
    _, c, h, w = images.shape
    return c, h, w


# --- ridge regression along its path ---------------------------------------------------------------------------

class Spectrum(NamedTuple):
    """Regression in principal coordinates of the inputs: `weights = basis @ diag(1 / (values + penalty)) @ cross`.

    Attributes:
        values: `[r]` eigenvalues of the inputs' scatter.
        basis: `[d, r]` its eigenvectors.
        cross: `[r, out]` the inputs' scatter with the outputs.
    """

    values: Tensor
    basis: Tensor
    cross: Tensor


def _shrinkage(spectrum: Spectrum, held_scatter: Tensor, held_cross: Tensor) -> Tensor:
    """Return `[r]` factors 1 / (value + penalty) for the penalty of least squared error on the held pairs.

    The error is a quadratic form in the factors, so that the whole path costs one matrix product.

    Args:
        spectrum: of the pairs to learn from.
        held_scatter: `[r, r]` scatter of the held inputs in principal coordinates.
        held_cross: `[r, out]` theirs with the held outputs.
    """
    linear = (held_cross * spectrum.cross).sum(1)
    quadratic = held_scatter * (spectrum.cross @ spectrum.cross.T)
    unit = spectrum.values.sum() / max(1, len(spectrum.values))
    if unit <= 0:
        return torch.zeros_like(spectrum.values)
    factors = 1 / (spectrum.values.clamp(min=0) + _LAMBDAS[:, None].to(spectrum.values) * unit)
    errors = ((factors @ quadratic) * factors).sum(1) - 2 * factors @ linear
    # no weights at all are one end of the path
    return factors[errors.argmin()] if errors.min() < 0 else torch.zeros_like(spectrum.values)


def _fit_global(pairs: Pairs) -> Tensors:
    """Ridge of all plain values on all released ones, in the dual form where images are fewer than values."""
    centre, offset = pairs.released.mean(0).flatten(), pairs.plain.mean(0).flatten()
    x, held_x = pairs.released.flatten(1) - centre, pairs.held_released.flatten(1) - centre
    y, held_y = pairs.plain.flatten(1) - offset, pairs.held_plain.flatten(1) - offset
    rank = max(1, MAX_GLOBAL // (x.shape[1] + y.shape[1]))
    spectrum = _dual(x, y, rank) if len(x) < x.shape[1] else _primal(_product(x, x), _product(x, y), rank)
    held_z = _product(held_x.T, spectrum.basis)
    factors = _shrinkage(spectrum, held_z.T @ held_z, _product(held_z, held_y))
    return {"global_centre": centre, "global_offset": offset, "global_left": spectrum.basis.float(),
            "global_right": (factors[:, None] * spectrum.cross).float()}


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Return `x.T @ y` in double precision, a part of the rows at a time."""
    total = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
    rows = max(1, _CHUNK // (x.shape[1] + y.shape[1]))
    for a, b in zip(x.split(rows), y.split(rows), strict=True):
        total.addmm_(a.double().T, b.double())
    return total


def _primal(scatter: Tensor, cross: Tensor, rank: int) -> Spectrum:
    values, basis = torch.linalg.eigh(scatter)
    values, basis = values[-rank:], basis[:, -rank:]
    return Spectrum(values.clamp(min=0), basis, basis.T @ cross)


def _dual(x: Tensor, y: Tensor, rank: int) -> Spectrum:
    values, left = torch.linalg.eigh(_product(x.T, x.T))
    real = values > values[-1].clamp(min=1e-300) * 1e-12
    values, left = values[real][-rank:], left[:, real][:, -rank:]
    return Spectrum(values, _product(x, left / values.sqrt()), values.sqrt()[:, None] * _product(left, y))


# --- the local map ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Cell:
    """Which released pixels a block of plain pixels is estimated from.

    Attributes:
        block: side of the plain block.
        step: side of the released block at the same place.
        margin: released pixels around it that the window takes in as well.
    """

    block: int
    step: int
    margin: int

    @property
    def side(self) -> int:
        """Side of the window."""
        return self.step + 2 * self.margin


@dataclass(frozen=True)
class Moments:
    """Sums over windows x `[q, d]` and blocks y `[q, out]`: their number, x, y, x xᵀ and x yᵀ."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    def about(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scatter of the inputs, and theirs with the outputs, about the points x `[d]` and y `[out]`."""
        xx = self.xx - torch.outer(self.x, x) - torch.outer(x, self.x) + self.count * torch.outer(x, x)
        xy = self.xy - torch.outer(self.x, y) - torch.outer(x, self.y) + self.count * torch.outer(x, y)
        return xx, xy


def _best_local(pairs: Pairs) -> Tensors | None:
    """Rank block and window sides on few windows, fit the best again on many; None if no block side fits."""
    def tried(cell: Cell, budget: int) -> tuple[float, Tensors]:
        weights = {"mean": pairs.plain.mean(0)} | _fit_local(cell, pairs, budget)
        return pairs.error(weights), weights

    ranked: list[tuple[float, Cell]] = []
    for block, step in _steps(_shape_of(pairs.released), _shape_of(pairs.plain)):
        best = float("inf")
        for cell in _growing(block, step, pairs.released.shape[1]):
            error, _ = tried(cell, SCREEN)
            ranked.append((error, cell))
            if error > 0.998 * best:
                break
            best = error
    if not ranked:
        return None
    ranked.sort(key=lambda item: item[0])
    return min((tried(cell, REFIT) for _, cell in ranked[:SHORTLIST]), key=lambda item: item[0])[1]


def _steps(released: Shape, plain: Shape) -> list[tuple[int, int]]:
    """List the sides of plain blocks, and of the released blocks at the same place, that tile both images."""
    (c, h, w), (channels, height, width) = released, plain
    sides = [s for s in range(1, min(height, width) + 1)
             if height % s == 0 and width % s == 0 and s * h % height == 0 and s * w % width == 0
             and s * h // height == s * w // width > 0]
    return [(s, s * h // height) for s in sides
            if channels * s * s <= MAX_BLOCK and c * (s * h // height)**2 <= MAX_WINDOW]


def _growing(block: int, step: int, channels: int) -> Iterator[Cell]:
    for margin in MARGINS:
        cell = Cell(block, step, margin)
        if channels * cell.side**2 <= MAX_WINDOW:
            yield cell


def _fit_local(cell: Cell, pairs: Pairs, budget: int) -> Tensors:
    moments = _moments(cell, pairs.released, pairs.plain, budget)
    held = _moments(cell, pairs.held_released, pairs.held_plain, budget)
    centre, offset = moments.x / moments.count, moments.y / moments.count
    spectrum = _primal(*moments.about(centre, offset), rank=len(centre))
    held_xx, held_xy = held.about(centre, offset)
    factors = _shrinkage(spectrum, spectrum.basis.T @ held_xx @ spectrum.basis, spectrum.basis.T @ held_xy)
    weights = spectrum.basis @ (factors[:, None] * spectrum.cross)
    bias = offset - centre @ weights
    kernel = weights.T.reshape(-1, pairs.released.shape[1], cell.side, cell.side)
    return {"local_weight": kernel.float(), "local_bias": bias.float(), "local_step": torch.tensor(cell.step)}


def _moments(cell: Cell, released: Tensor, plain: Tensor, budget: int) -> Moments:
    """Sum over windows and blocks at random places of all images: as many as the budget of multiplications allows."""
    padded = F.pad(released, [cell.margin] * 4, mode="replicate")
    windows = padded.unfold(2, cell.side, cell.step).unfold(3, cell.side, cell.step)
    blocks = plain.unfold(2, cell.block, cell.block).unfold(3, cell.block, cell.block)
    d, out = released.shape[1] * cell.side**2, plain.shape[1] * cell.block**2
    rows, columns = blocks.shape[2:4]
    wanted = max(budget // (d * (d + out)), 4 * d)
    share = min(rows * columns, max(1, wanted // len(plain)))
    rng = generator(0)
    sums = [torch.zeros(*size, dtype=torch.float64) for size in ((d,), (out,), (d, d), (d, out))]
    count = 0
    chunk = max(1, min(_CHUNK // (share * (d + out)), -(-len(plain) // 16)))
    for start in range(0, min(len(plain), wanted), chunk):
        # other places in every chunk, so that all places of a cell's image are seen
        at = torch.randperm(rows * columns, generator=rng)[:share]
        some, them = (values[start:start + chunk, :, at // columns, at % columns].transpose(1, 2).double()
                      .flatten(2).flatten(0, 1) for values in (windows, blocks))
        for total, part in zip(sums, (some.sum(0), them.sum(0), some.T @ some, some.T @ them), strict=True):
            total += part
        count += len(some)
    return Moments(count, *sums)


def _apply_local(found: Tensors, released: Tensor, shape: Shape) -> Tensor:
    cell = _cell(found, shape[0])
    padded = F.pad(released, [cell.margin] * 4, mode="replicate")
    return F.pixel_shuffle(F.conv2d(padded, found["local_weight"], found["local_bias"], stride=cell.step), cell.block)


def _cell(found: Tensors, channels: int) -> Cell:
    """Return which released pixels a local map reads."""
    kernel, step = found["local_weight"], int(found["local_step"])
    return Cell(_block(kernel, channels), step, (kernel.shape[-1] - step) // 2)


def _block(kernel: Tensor, channels: int) -> int:
    """Return the side of the plain blocks that a local map estimates."""
    return math.isqrt(len(kernel) // channels)
