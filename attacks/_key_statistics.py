"""A key from the release alone: what depends on one another in the released images does so in public ones.

The correlations of the values of a block are those of public images in another order, which quadratic assignment finds
(Vogelstein et al. 2015, "Fast approximate quadratic programming for graph matching"). Negatives change their signs, and
are found by these. Values of which nothing can be said so (the low nibbles, almost noise) are found by their means at
each level of the others.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppbench.attacks._key_map import KeyMap, Structure
from ppbench.attacks._key_neighbours import by_neighbours
from ppbench.attacks._key_order import correlations, matched_by
from ppbench.blocks import symmetries

MOST = 1 << 25  # values of a set of images that are looked at
STRONG = 0.5  # correlation with some other value, below which a value is found by its means
_NEAR_ONE = 1 - 1e-6


def guess(structure: Structure, released: Tensor, public: Tensor, rng: torch.Generator) -> tuple[KeyMap, float] | None:
    """Guess the key by which released levels `[N, blocks, values]` come to look like public ones `[M, blocks, values]`.

    Blocks that all share one order of their values are left where they are.

    Args:
        structure: of the key.
        released: under one key.
        public: plain.
        rng: draws where searches start.

    Returns:
        The map, and how well the correlations of the released values agree with those of the public ones that they are
        taken for: near 1 for the right key and enough images. None where every block has a key of its own, or the
        values are too many or go with nothing.
    """
    count, values = structure.blocks, structure.values
    most = max(2, MOST // (count * values))
    seen, plain = (levels[:most].float() - structure.top / 2 for levels in (released, public))
    if structure.inside == "shared":
        found = _inside(seen.flatten(0, 1), plain.flatten(0, 1), structure, rng)
        if found is None:
            return None
        order, sign, fit = found
        return KeyMap(torch.arange(count), order.expand(count, -1), (sign < 0).expand(count, -1)), fit
    return by_neighbours(structure, seen, plain, rng)


def _inside(seen: Tensor, plain: Tensor, structure: Structure, rng: torch.Generator,
            ) -> tuple[Tensor, Tensor, float] | None:
    """Return the plain value that each released one is, its sign, and the fit; None = nothing tells."""
    theirs, ours = correlations(seen), correlations(plain)
    if not structure.negated:
        found = matched_by(theirs, ours, rng)
        if found is None:
            return None
        order = _upright(found[0], structure, theirs, ours, (seen.mean(0), plain.mean(0)))
        return order, torch.ones(len(order)), found[1]
    theirs2, ours2 = theirs.square(), ours.square()
    found = matched_by(theirs2, ours2, rng)
    if found is None:
        return None
    order = _upright(found[0], structure, theirs2, ours2, (seen.mean(0).abs(), plain.mean(0).abs()))
    strong = _strength(ours)[order] > STRONG
    sign = torch.ones(len(order))
    known = strong.nonzero()[:, 0]
    if len(known) == 0:
        return None
    sign[known] = _signs(theirs[known][:, known] * ours[order[known]][:, order[known]])
    levels = structure.top + 1
    if _unlike(seen[:, known] * sign[known], plain[:, order[known]], levels) > \
            _unlike(seen[:, known] * -sign[known], plain[:, order[known]], levels):
        sign[known] *= -1
    weak = (~strong).nonzero()[:, 0]
    if len(weak):
        order[weak], sign[weak] = _by_means(seen, plain, order, sign, known, weak, structure.top)
    return order, sign, found[1]


def _upright(order: Tensor, structure: Structure, theirs: Tensor, ours: Tensor, means: tuple[Tensor, Tensor]) -> Tensor:
    """Choose among the 8 ways to turn a block, which its correlations hardly tell apart.

    They are compared on Fisher's scale, on which all err alike; the values' means count as much.
    """
    size = structure.size or 1
    if size == 1:
        return order
    turned = symmetries(size)[:, order % size**2] + order // size**2 * size**2
    scales = [torch.atanh(part.clamp(-_NEAR_ONE, _NEAR_ONE)) for part in (theirs, ours)]
    far = torch.stack([torch.stack([(scales[0] - scales[1][one][:, one]).square().sum(),
                                    (means[0] - means[1][one]).double().square().sum()]) for one in turned])
    return turned[int((far / far.amin(0).clamp(min=1e-12)).sum(1).argmin())]


def _strength(correlations: Tensor) -> Tensor:
    """Return how closely each value goes with another one."""
    return (correlations - torch.diag(correlations.diagonal())).abs().amax(1)


def _signs(agreement: Tensor) -> Tensor:
    """Return the signs, up to all of them, that make a symmetric matrix of products positive."""
    leading = torch.linalg.eigh(agreement).eigenvectors[:, -1]
    return torch.where(leading < 0, -1.0, 1.0)


def _unlike(seen: Tensor, plain: Tensor, levels: int) -> float:
    """Return how far the values' histograms lie apart."""
    edge = (levels - 1) / 2
    found = [torch.stack([torch.histc(column, min(levels, 16), -edge, edge) for column in part.T]) / len(part)
             for part in (seen, plain)]
    return float((found[0] - found[1]).square().sum())


def _by_means(seen: Tensor, plain: Tensor, order: Tensor, sign: Tensor, known: Tensor, weak: Tensor, top: int,
              ) -> tuple[Tensor, Tensor]:
    """Find values by their means at each level of the known ones: `order` and sign of the weak ones."""
    left = order[weak].sort().values
    theirs = _means(seen[:, weak], seen[:, known] * sign[known], top)
    ours = _means(plain[:, left], plain[:, order[known]], top)
    likeness = theirs.flatten(1) @ ours.flatten(1).T
    rows, columns = linear_sum_assignment(-likeness.abs().numpy())
    chosen = likeness[rows, columns]
    return left[torch.from_numpy(columns)], torch.where(chosen < 0, -1.0, 1.0)


def _means(values: Tensor, given: Tensor, top: int) -> Tensor:
    """Return the mean of each of `values` at each of 16 levels of each given one, `[values, given, 16]`.

    Each as a deviation from the value's own mean, times the root of the level's share.
    """
    centred = values - values.mean(0)
    found = []
    for column in given.T:
        level = ((column + top / 2) * 16 / (top + 1)).long().clamp(0, 15)
        member = torch.nn.functional.one_hot(level, 16).float()
        found.append(centred.T @ member / member.sum(0).clamp(min=1).sqrt())
    means: Tensor = torch.stack(found, 1) / len(values) ** 0.5
    return means
