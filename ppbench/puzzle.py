"""How much of a scrambled image was put together, and whether its seams misled the solver; from images alone.

Blocks are compared by their contents, in 8 bit: copies count as the same, and no key is asked. Where a cipher shuffles
the values of all blocks alike, one value that an attack has in the wrong place would spoil every block: there a block
counts as the private one that it has most values of, if these are more than half. What a cipher does to single blocks
it could do to the whole image, and nobody could tell: an image that came back turned, negative or in other colours is
as good as the private one where the cipher turns, negates or recolours, or shuffles values.
"""

from dataclasses import dataclass
from itertools import permutations

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ppbench.blocks import check_divides, cut, join, symmetries
from ppbench.defense import Pieces

PUZZLE_DEFINITION = ("8-bit blocks up to the turns, negatives and colour orders of the cipher, or that its shared "
                     "shuffle of values hides (there also with fewer than half of the values wrong); direct: of the "
                     "whole image; neighbour: multiset of pairs; largest: places joined by true pairs; cheaper: by "
                     "sum of log(1+MGC)+log(1+prediction) in RGB; at least half of the blocks private")
SCORES = ("piece_direct", "piece_neighbour", "piece_largest", "piece_perfect", "piece_cheaper")

_MADE_OF = 0.5  # the least share of private blocks: below it the estimate is no attempt at the puzzle
_RIGHT = 0.5  # the share of a block's values above which it counts as the private one that has as many, of these
_NEAREST = 32  # by distance
_MARGIN = 1e-6  # relative: two costs this close are equal up to rounding
_CHUNK_VALUES = 2**22  # values held at once a tensor: 32 MiB in int64


@dataclass(frozen=True)
class Symmetries:
    """What may be done to a whole image without changing the puzzle; of each the first is to do nothing.

    Attributes:
        states: of `blocks.symmetries`: turns and mirror images.
        orders: of the colour channels.
        negated: 1 - v as well as v.
    """

    states: tuple[int, ...]
    orders: tuple[tuple[int, ...], ...]
    negated: bool

    def __len__(self) -> int:
        return len(self.states) * len(self.orders) * (1 + self.negated)


def symmetries_of(pieces: Pieces, channels: int) -> Symmetries:
    """Return the symmetries of a cipher's puzzles: at most 8 states x 6 orders of 3 channels x 2 signs.

    Where all blocks' values are shuffled alike, another shuffle of an image that was turned or recoloured before gives
    the same release.
    """
    mixed = pieces.pixels == "shared"
    orders = permutations(range(channels)) if pieces.recoloured or mixed else [range(channels)]
    return Symmetries(tuple(range(8)) if pieces.turned or mixed else (0,), tuple(tuple(order) for order in orders),
                      pieces.negated)


def puzzle_scores(estimates: Tensor, private: Tensor, pieces: Pieces) -> dict[str, Tensor]:
    """Score estimates as boards of a jigsaw puzzle whose blocks are the private image's.

    - `piece_direct`: share of places with the right block, under the best symmetry of the whole estimate that keeps
      its shape (direct comparison; Cho, Avidan & Freeman, "A probabilistic image jigsaw puzzle solver", CVPR 2010).
    - `piece_neighbour`: share of the private image's pairs of adjacent blocks that the estimate has, wherever they
      lie and each under any symmetry (neighbour comparison, ibid.); a pair that occurs k times counts k times at most.
      1 for a single block.
    - `piece_largest`: share of places in the largest part of the estimate that hangs together by pairs that the
      private image has as well: where no block looks like another, or like itself turned, the largest part that is
      assembled rightly.
    - `piece_perfect`: 1 where `piece_direct` is 1, else 0.
    - `piece_cheaper`: 1 where the estimate's seams cost less (`seam_costs`) than the private image's, else 0: there,
      what is measured at seams misleads. A solver's own costs may differ.

    Args:
        estimates: `[N, C, H, W]` in [0, 1].
        private: the same shape.
        pieces: what the cipher does; whether it acts on nibbles plays no part.

    Returns:
        Name -> `[N]` float64 in [0, 1]; NaN where fewer than half of the estimate's blocks are private ones.

    Raises:
        UserError: blocks of that size do not tile the images.
    """
    channels, height, width = private.shape[1:]
    check_divides("pieces().size", pieces.size, (channels, height, width))
    group = symmetries_of(pieces, channels)
    held = len(group) * (height // pieces.size) * (width // pieces.size) + private[0].numel()
    rows = max(1, _CHUNK_VALUES // held)
    parts = [_scores(_levels(x), _levels(y), pieces, group)
             for x, y in zip(estimates.split(rows), private.split(rows), strict=True)]
    return dict(zip(SCORES, torch.cat(parts, 1), strict=True))


def seam_costs(images: Tensor, size: int) -> Tensor:
    """Add up log(1 + MGC) + log(1 + prediction) over all pairs of adjacent blocks, `[N]` float64, >= 0.

    MGC: Mahalanobis gradient compatibility (Gallagher, "Jigsaw puzzles with pieces of unknown orientation", CVPR
    2012), the squared distances of the steps across the seam from the mean and covariance of the last steps inside the
    one block, his nine dummy steps among the latter (five for grey images), plus the same seen from the other block.
    Prediction: the sum of absolute differences between what lies beyond the seam and the linear extrapolation from the
    two last pixels before it, both ways (Pomeranz, Shemesh & Ben-Shahar, "A fully automated greedy square jigsaw
    puzzle solver", CVPR 2011, with p = q = 1). Both in RGB levels from 0 to 255. Turning the whole image, negating it
    or permuting its channels changes the cost by rounding alone.

    Args:
        images: `[N, C, H, W]` in [0, 1]; rounded to 8 bit.
        size: side of a block in pixels.
    """
    return _costs(_levels(images), size)


def _levels(images: Tensor) -> Tensor:
    """Round images in [0, 1] to the levels 0 to 255, int64."""
    return (images.clamp(0, 1) * 255).round().long()


def _scores(estimates: Tensor, private: Tensor, pieces: Pieces, group: Symmetries) -> Tensor:
    """Return the five scores `[5, N]` of levels `[N, C, H, W]`."""
    size = pieces.size
    read = _mended(estimates, private, size, group) if pieces.pixels == "shared" else estimates
    mine, true = _codes(read, size, group), _codes(private, size, group)
    direct = _direct(mine, true[:, 0, 0], group)
    beside, below = _pairs(mine, group)
    pairs = torch.cat([pair.flatten(1) for pair in _pairs(true, group)], 1)
    neighbour = _overlap(torch.cat([beside.flatten(1), below.flatten(1)], 1), pairs)
    largest = _largest(_among(beside, pairs), _among(below, pairs))
    cheaper = _costs(estimates, size) < (1 - _MARGIN) * _costs(private, size)
    scores = torch.stack([direct, neighbour, largest, (direct == 1).double(), cheaper.double()])
    made_of = _overlap(mine.amin((1, 2)).flatten(1), true.amin((1, 2)).flatten(1))
    return scores.where(made_of >= _MADE_OF, torch.nan)


def _mended(estimates: Tensor, private: Tensor, size: int, group: Symmetries) -> Tensor:
    """Replace blocks by the private block, under some symmetry, that they have most of their values from."""
    mine, true = cut(estimates, size).flatten(2), cut(private, size).flatten(2)
    looks = _looks(size, private.shape[1], group)
    found = []
    for blocks, own in zip(mine, true, strict=True):
        every = own[:, looks].flatten(0, 1)
        every = torch.cat([every, 255 - every]) if group.negated else every
        for some in blocks.split(max(1, _CHUNK_VALUES // len(every))):
            near = torch.cdist(some.float(), every.float()).topk(min(_NEAREST, len(every)), largest=False).indices
            right, best = (every[near] == some[:, None]).double().mean(2).max(1)
            meant = every[near.gather(1, best[:, None])[:, 0]]
            found.append(torch.where(right[:, None] > _RIGHT, meant, some))
    channels, height, width = estimates.shape[1:]
    return join(torch.cat(found).view(*mine.shape[:2], channels, size, size), (channels, height, width))


def _looks(size: int, channels: int, group: Symmetries) -> Tensor:
    """Return from where every value of a block is taken, `[states * orders, values]`."""
    places = torch.arange(channels * size * size).view(channels, -1)
    return torch.stack([places[list(order)][:, state].flatten()
                        for state in symmetries(size)[list(group.states)] for order in group.orders])


def _codes(levels: Tensor, size: int, group: Symmetries) -> Tensor:
    """Number the contents of every block under every symmetry, `[N, states, looks, rows, columns]` int64.

    A random projection modulo 2^64: equal contents get equal numbers, others all but never do. A look is an order of
    the channels, as it is or as a negative.
    """
    channels, height, width = levels.shape[1:]
    sources = _looks(size, channels, group)
    weights = _random(sources.shape[1], 0)[sources.argsort(1)]  # what a value counts for where the symmetry puts it
    codes: Tensor = cut(levels, size).flatten(2) @ weights.T
    codes = codes.view(-1, height // size, width // size, len(group.states), len(group.orders))
    if group.negated:
        codes = torch.cat([codes, 255 * weights[0].sum() - codes], 4)
    return codes.permute(0, 3, 4, 1, 2)


def _random(count: int, seed: int) -> Tensor:
    return torch.randint(-2**63, 2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))


def _turned(grids: Tensor, state: int) -> Tensor:
    """Bring grids `[..., rows, columns]` into a state of `blocks.symmetries`."""
    turned = grids.rot90(state % 4, (-2, -1))
    return turned if state < 4 else turned.flip(-1)


def _direct(codes: Tensor, truth: Tensor, group: Symmetries) -> Tensor:
    """Share of places `[N]` where codes, under the best symmetry, agree with `truth` `[N, rows, columns]`."""
    turned = (_turned(codes[:, i], state) for i, state in enumerate(group.states))
    shares = [(grid == truth[:, None]).double().mean((2, 3)).amax(1) for grid in turned
              if grid.shape[2:] == truth.shape[1:]]
    return torch.stack(shares).amax(0)


def _pairs(codes: Tensor, group: Symmetries) -> tuple[Tensor, Tensor]:
    """Number all pairs side by side, `[N, rows, columns - 1]`, and one below the other, `[N, rows - 1, columns]`.

    The least number under all symmetries: two pairs get the same one where a symmetry makes the one out of the other.
    """
    first, second, upright = _random(3, 1)
    found: list[Tensor] = []
    for axis, pair in ((4, torch.tensor([[0, 1]])), (3, torch.tensor([[0], [1]]))):
        length = codes.shape[axis] - 1
        sides = codes.narrow(axis, 0, length), codes.narrow(axis, 1, length)
        looks: list[Tensor] = []
        for i, state in enumerate(group.states):
            turned = _turned(pair, state)
            one, other = (sides[side][:, i] for side in turned.flatten().tolist())
            looks.append((one * first + other * second + upright * (len(turned) - 1)).amin(1))
        found.append(torch.stack(looks).amin(0))
    return found[0], found[1]


def _overlap(mine: Tensor, true: Tensor) -> Tensor:
    """Share of the numbers in each row of `true` that its row of `mine` holds as often, both `[N, M]`; 1 for none."""
    length = true.shape[1]
    if length == 0:
        return torch.ones(len(true), dtype=torch.float64)
    ordered, origin = torch.cat([mine, true], 1).sort(1)
    runs = torch.nn.functional.pad((ordered.diff(dim=1) != 0).long().cumsum(1), (1, 0))
    counts = [torch.zeros(runs.shape, dtype=torch.float64).scatter_add_(1, runs, side.double())
              for side in (origin < length, origin >= length)]
    return torch.minimum(counts[0], counts[1]).sum(1) / length


def _among(found: Tensor, rows: Tensor) -> Tensor:
    """Say of each number in `found` `[N, ...]` whether it is in its row of `rows` `[N, M]`."""
    flat, ordered = found.flatten(1), rows.sort(1).values
    if flat.shape[1] == 0:
        return torch.zeros(found.shape, dtype=torch.bool)
    at = torch.searchsorted(ordered, flat).clamp(max=ordered.shape[1] - 1)
    return (ordered.gather(1, at) == flat).view(found.shape)


def _largest(beside: Tensor, below: Tensor) -> Tensor:
    """Share of places `[N]` in the largest part that hangs together, given which neighbours do.

    Args:
        beside: `[N, rows, columns - 1]` bool.
        below: `[N, rows - 1, columns]` bool.
    """
    count, rows, columns = len(beside), beside.shape[1], below.shape[2]
    places = torch.arange(count * rows * columns).view(count, rows, columns)
    one = torch.cat([places[:, :, :-1][beside], places[:, :-1][below]])
    other = torch.cat([places[:, :, 1:][beside], places[:, 1:][below]])
    graph = coo_array((torch.ones(len(one)).numpy(), (one.numpy(), other.numpy())), shape=(places.numel(),) * 2)
    labels = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    return labels.bincount()[labels].view(count, -1).amax(1) / (rows * columns)


def _costs(levels: Tensor, size: int) -> Tensor:
    values = levels.double()
    return _costs_beside(values, size) + _costs_beside(values.mT, size)


def _costs_beside(levels: Tensor, size: int) -> Tensor:
    """Add up the costs of the upright seams of images `[N, C, H, W]`, `[N]`."""
    beyond = torch.arange(size, levels.shape[3], size)
    inner = min(1, size - 1)
    # each [N, rows, seams, C, size], from left to right
    left_inner, left, right, right_inner = (
        levels[..., beyond + step].unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3)
        for step in (-1 - inner, -1, 0, inner))
    mgc = _mahalanobis(left, left - left_inner, right) + _mahalanobis(right, right - right_inner, left)
    missed = (2 * left - left_inner - right).abs() + (2 * right - right_inner - left).abs()
    costs: Tensor = mgc.log1p() + missed.sum((3, 4)).log1p()
    return costs.sum((1, 2))


def _mahalanobis(edge: Tensor, steps: Tensor, beyond: Tensor) -> Tensor:
    """Squared distances, added up, of the steps from `edge` to `beyond` from the distribution of `steps`.

    All three `[..., C, size]`; returns `[...]`.
    """
    channels, length = edge.shape[-2:]
    mean = steps.mean(-1, keepdim=True)
    dummies = 2 * (torch.eye(channels, dtype=edge.dtype) + 1)  # (1,1,1), the unit vectors, their negatives, and zero
    covariance = ((steps - mean) @ (steps - mean).mT + dummies) / (length + 2 * channels + 2)
    off = beyond - edge - mean
    weighted: Tensor = torch.linalg.solve(covariance, off)
    return (off * weighted).sum((-2, -1))
