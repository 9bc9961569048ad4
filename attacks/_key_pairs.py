"""A key from known pairs: values that agree in all pairs, up to their negatives, are one and the same.

Every value has a signature: its levels in all pairs. A signature is hashed linearly, so that its negative has the
negated hash, and a cipher that moves whole values leaves the hashes, up to their signs, as they were: what belongs
together is found by sorting.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.attacks._key_colours import Table, folded, mixed
from ppbench.attacks._key_map import KeyMap, Structure
from ppbench.seeding import generator


@dataclass(frozen=True)
class Recovered:
    """A key, and how far the pairs speak for it.

    Attributes:
        key: the map; one of those that agree with the pairs.
        right: share of the values that the map encrypts right in all pairs, in [0, 1].
        doubtful: `[blocks, values]` bool: plain values that could as well have gone where others went, or that the map
            encrypts wrongly.
        content: `[blocks]` int64: equal for plain blocks that the pairs do not tell from one another.
        ours: `[blocks or 1, values]` int64: hashed signatures of the plain values (one row: over all blocks); or
            `[blocks, states]`: of the plain blocks in all their states.
        theirs: the same of the released values, or `[blocks, 1]` of the released blocks.
    """

    key: KeyMap
    right: float
    doubtful: Tensor
    content: Tensor
    ours: Tensor
    theirs: Tensor

    @property
    def sure(self) -> float:
        """Return the share of values that are not doubtful, in [0, 1]."""
        return 1 - self.doubtful.double().mean().item()


def recover(structure: Structure, plain: Tensor, released: Tensor) -> Recovered:
    """Recover the key that turned plain levels `[k, blocks, values]` into released ones.

    Where values are alike in all pairs, one of the keys that agree with the pairs is returned.
    """
    before, after = (2 * levels - structure.top for levels in (plain, released))
    by = {"states": _by_states, "own": _by_blocks, "shared": _by_columns}[structure.inside]
    found = by(structure, before, after)
    wrong = (found.key.encrypt(plain, structure.top) != released).any(0)
    there = found.doubtful.new_zeros(wrong.shape).scatter(1, found.key.order, wrong)  # by the place in the plain block
    doubtful = found.doubtful | torch.empty_like(there).scatter(0, found.key.source[:, None].expand_as(there), there)
    return replace(found, right=1 - wrong.double().mean().item(), doubtful=doubtful)


def _by_states(structure: Structure, before: Tensor, after: Tensor) -> Recovered:
    """Find every block among the plain ones in all their states."""
    assert structure.states is not None
    weights = _weights(len(before), structure.values)
    # weights put where a state takes values from: one product hashes a block in every state
    spread = weights[:, structure.states.argsort(1)].transpose(0, 1).flatten(1)  # [S, k * values]
    ours, theirs = (torch.stack([levels.transpose(0, 1).flatten(1) @ row for row in spread], 1)
                    for levels in (before, after))
    if structure.negated:
        ours, theirs = (torch.cat([hashes, -hashes], 1) for hashes in (ours, theirs))
    content = ours.amin(1) if structure.moved else torch.arange(structure.blocks)
    source = matched(content, theirs.amin(1)) if structure.moved else content
    fitting = ours[source] == theirs[:, :1]
    key = KeyMap(source, *states_of(structure, fitting.int().argmax(1)))
    doubtful = alike(content) | torch.empty_like(fitting[:, 0]).scatter(0, source, fitting.sum(1) > 1)
    return Recovered(key, 0.0, doubtful[:, None].expand(-1, structure.values), content, ours, theirs[:, :1])


def states_of(structure: Structure, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the orders and negatives `[blocks, values]` of states `[blocks]`, the second half of them negated."""
    assert structure.states is not None
    count = len(structure.states)
    return structure.states[state % count], (state >= count)[:, None].expand(-1, structure.values)


def _by_blocks(structure: Structure, before: Tensor, after: Tensor) -> Recovered:
    """Match blocks by what they hold, then their values one by one."""
    ours, theirs = (_hashes(levels) for levels in (before, after))  # [blocks, values]
    content = _contents(ours) if structure.moved else torch.arange(structure.blocks)
    source = matched(content, _contents(theirs)) if structure.moved else content
    order = matched(folded(ours[source]), folded(theirs))
    negative = ours[source].gather(1, order) != theirs
    doubtful = alike(content)[:, None] | alike(folded(ours))
    return Recovered(KeyMap(source, order, negative), 0.0, doubtful, content, ours, theirs)


def _by_columns(structure: Structure, before: Tensor, after: Tensor) -> Recovered:
    """Match blocks and the places inside them, each told by what it holds at the others.

    Where some are alike, and not any of them does, one is taken for one of the others, which tells more of the rest.
    """
    ours, theirs = (Table.of(_hashes(levels), structure.moved) for levels in (before, after))
    told, seen = ours.colours(), theirs.colours()
    first = told, seen
    key = _matching(structure, ours, theirs, told, seen)
    for mark in range(1, structure.blocks + structure.values):
        axis = 0 if alike(told[0]).any() else 1
        twins = alike(folded(told[axis])).nonzero()[:, 0]
        if len(twins) == 0 or torch.equal(key.encrypt(before, 0), after):
            break
        same = (folded(seen[axis]) == folded(told[axis])[twins[0]]).nonzero()[:, 0]
        if len(same) == 0:
            break
        ours, theirs = ours.marked(axis, int(twins[0]), mark), theirs.marked(axis, int(same[0]), mark)
        told, seen = ours.colours(), theirs.colours()
        key = _matching(structure, ours, theirs, told, seen)
    told, seen = first
    doubtful = alike(told[0])[:, None] | alike(folded(told[1]))
    return Recovered(key, 0.0, doubtful, told[0], told[1][None], seen[1][None])


def _matching(structure: Structure, ours: Table, theirs: Table, told: tuple[Tensor, Tensor],
              seen: tuple[Tensor, Tensor]) -> KeyMap:
    """Return the key by which rows and columns of one colour are one another."""
    source = matched(told[0], seen[0]) if structure.moved else torch.arange(structure.blocks)
    order = matched(folded(told[1]), folded(seen[1]))
    cells = ours.cells[source][:, order]
    negative = (cells == theirs.cells).sum(0) < (cells == -theirs.cells).sum(0)
    return KeyMap(source, order.expand(structure.blocks, -1), negative.expand(structure.blocks, -1))


def _weights(*shape: int) -> Tensor:
    """Draw odd 64-bit factors, always the same: a linear hash with 64 bits hardly ever takes two values for one."""
    return torch.randint(-2**62, 2**62, shape, generator=generator(20)) * 2 + 1


def _hashes(levels: Tensor) -> Tensor:
    """Hash each value's signature over the first axis: `[k, ...]` to `[...]`; the negative has the negated hash."""
    weights = _weights(len(levels))
    return (levels * weights.reshape(-1, *[1] * (levels.ndim - 1))).sum(0)


def _contents(hashes: Tensor) -> Tensor:
    """Hash what a block holds, whatever its order and signs: `[blocks, values]` to `[blocks]`."""
    return mixed(folded(hashes)).sum(1)


def alike(hashes: Tensor) -> Tensor:
    """Say along the last axis which values occur more than once."""
    ranked, order = hashes.sort(stable=True, dim=-1)
    same = ranked[..., 1:] == ranked[..., :-1]
    edge = torch.zeros_like(ranked[..., :1], dtype=torch.bool)
    twins = torch.cat([edge, same], -1) | torch.cat([same, edge], -1)
    return torch.zeros_like(twins).scatter(-1, order, twins)


def matched(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return for each of `theirs` the place in `ours` of an equal value, along the last axis.

    Each is used once, alike ones in their order; what has no equal gets what is left over.
    """
    (mine, first), (found, second) = ours.sort(stable=True, dim=-1), theirs.sort(stable=True, dim=-1)
    rank = torch.arange(found.shape[-1]) - torch.searchsorted(found, found)  # among equals
    place = torch.searchsorted(mine, found) + rank
    fits = place < mine.shape[-1]
    place = place.clamp(max=mine.shape[-1] - 1)
    fits &= mine.gather(-1, place) == found
    used = torch.zeros_like(fits).int().scatter_reduce(-1, place, fits.int(), "amax")
    free, rest = used.argsort(stable=True, dim=-1), fits.int().argsort(stable=True, dim=-1)
    spare = torch.empty_like(place).scatter(-1, rest, free)
    chosen = torch.where(fits, place, spare)
    return torch.empty_like(first).scatter(-1, second, first.gather(-1, chosen))
