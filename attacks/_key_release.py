"""What known pairs leave open, settled by the release: under the right key, values are close to their neighbours."""

from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from ppbench.attacks._key_colours import folded
from ppbench.attacks._key_map import KeyMap, Structure
from ppbench.attacks._key_pairs import Recovered, alike, states_of

IMAGES = 256  # of a release, looked at
MOST = 0.5  # doubtful values, above which too few are known to tell the others by


def settled(structure: Structure, found: Recovered, released: Tensor) -> KeyMap:
    """Choose among the keys that agree with the pairs, by what released images look like under each.

    A doubtful value is expected to be the mean of the sure ones around it, in its own channel.

    Args:
        structure: of the key.
        found: from the pairs.
        released: levels `[N, blocks, values]` under the same key.
    """
    key = found.key
    if not 0 < 1 - found.sure <= MOST:
        return key
    released = released[:IMAGES]
    expected = _expected(structure, key.decrypt(released, structure.top), ~found.doubtful)
    # around the middle, the negative is minus the value
    seen, expected = (levels.double() - structure.top / 2 for levels in (released, expected))
    if structure.inside != "own":
        key = _settle_places(structure, found, seen, expected)
    if structure.inside != "states":
        key = _settle_values(replace(found, key=key), seen, expected)
    return key


def _expected(structure: Structure, levels: Tensor, sure: Tensor) -> Tensor:
    """Return for every plain value `[N, blocks, values]` the mean of the sure ones around it, in its own channel."""
    parts, weight = (structure.parts_of(part.double()) for part in (levels, sure[None]))
    channels = parts.shape[1]
    near = torch.ones(channels, 1, 3, 3, dtype=torch.float64)
    total, count = (F.conv2d(part, near, padding=1, groups=channels) for part in (parts * weight, weight))
    mean = (parts * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1)
    return structure.blocks_of(torch.where(count > 0, total / count.clamp(min=1), mean))


def _settle_places(structure: Structure, found: Recovered, seen: Tensor, expected: Tensor) -> KeyMap:
    """Deal blocks that the pairs do not tell apart to the places, and in the states, in which they fit best."""
    key = KeyMap(found.key.source.clone(), found.key.order.clone(), found.key.negative.clone())
    content = found.content[key.source]
    open_ = found.doubtful.all(1)[key.source]
    for one in content[open_].unique():
        places = (content == one).nonzero()[:, 0]
        plain = key.source[places]
        fits, states = _fits(structure, found, seen[:, places], expected[:, plain], places, plain)
        _, rows = (torch.from_numpy(each) for each in linear_sum_assignment(-_finite(fits).numpy()))
        key.source[places] = plain[rows]
        if structure.inside == "states":
            key.order[places], key.negative[places] = states_of(structure, states[torch.arange(len(rows)), rows])
    return key


def _fits(structure: Structure, found: Recovered, seen: Tensor, expected: Tensor, places: Tensor, plain: Tensor,
          ) -> tuple[Tensor, Tensor]:
    """Say how well released blocks `[N, p, values]` fit expected ones `[N, q, values]` in their best state.

    Returns:
        Their product less half the square of what is expected, `[p, q]`; and the state, `[p, q]`.
    """
    if structure.inside == "shared":
        signs = torch.where(found.key.negative[:1], -1.0, 1.0)
        orders, allowed = found.key.order[:1], torch.ones(len(places), len(plain), 1, dtype=torch.bool)
    else:
        assert structure.states is not None
        orders = structure.states
        signs = torch.ones(len(orders), 1)
        if structure.negated:
            orders, signs = torch.cat([orders, orders]), torch.cat([signs, -signs])
        allowed = found.ours[plain][None] == found.theirs[places][:, None]
    product = torch.stack([torch.einsum("npv,nqv->pq", seen * sign, expected[..., order])
                           for order, sign in zip(orders, signs.expand_as(orders), strict=True)], 2)
    best = product.masked_fill(~allowed, -torch.inf).max(2)
    return best.values - expected.square().sum((0, 2)) / 2, best.indices


def _finite(fits: Tensor) -> Tensor:
    """Make what cannot be worse than all else together: where pairs are wrong, there may be nothing that can."""
    possible = fits[fits.isfinite()]
    if not len(possible):
        return torch.zeros_like(fits)
    return fits.nan_to_num(neginf=float(possible.min() - len(fits) * (1 + possible.max() - possible.min())))


def _settle_values(found: Recovered, seen: Tensor, expected: Tensor) -> KeyMap:
    """Deal values that the pairs do not tell apart to the places in which they fit best."""
    order, negative = found.key.order.clone(), found.key.negative.clone()
    expected = expected[:, found.key.source]
    rows = len(found.ours)
    for row in range(rows):
        which = slice(None) if rows == 1 else row  # places are settled for all blocks, or for each
        plain = 0 if rows == 1 else int(found.key.source[row])
        ours, theirs, now = found.ours[plain], found.theirs[row], order[row].clone()
        group = folded(ours)
        mine, wanted = (part[:, which].reshape(-1, len(ours)) for part in (seen, expected))
        for one in group[alike(group)].unique():
            places = (group[now] == one).nonzero()[:, 0]
            values = now[places]
            signs = torch.where(ours[values][None] == theirs[places][:, None], 1.0, -1.0)
            fits = signs * (mine[:, places].T @ wanted[:, values]) - wanted[:, values].square().sum(0) / 2
            _, chosen = linear_sum_assignment(-fits.numpy())
            now[places] = values[torch.from_numpy(chosen)]
        order[which], negative[which] = now, ours[now] != theirs
    return KeyMap(found.key.source, order, negative)
