"""The states of blocks from the release alone: public images show how neighbouring blocks depend on one another.

Every block is in one of few states (turned, negated, recoloured). Given the states of its neighbours, its own is the
one in which its correlations with them are those of public images; from one block on, that tells all the others. Places
are found first, by the correlations of the blocks' means, which a state changes in sign at most.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product

import torch
from torch import Tensor

from ppbench.attacks._key_map import KeyMap, Structure
from ppbench.attacks._key_order import correlations, matched_by
from ppbench.blocks import symmetries

STARTS = 12  # states of the first block that are followed to the end
ALIKE = 0.02  # relative difference of agreements that says nothing
LARGEST = 4096  # values of an image, whose correlations take their number squared
FEW = 3  # values of a block of which all signed orders are tried
_FIRST = 9  # blocks by which states to start from are compared


@dataclass(frozen=True)
class Puzzle:
    """Correlations of released and of public values, block by block.

    Attributes:
        theirs: `[blocks, blocks, values, values]` float32, of the released images.
        ours: the same of public ones.
        orders: `[S, values]` the value that each place takes, in every state.
        signs: `[S, values]` 1, or -1 where it takes the negative, float32.
        grid: rows and columns of blocks.
    """

    theirs: Tensor
    ours: Tensor
    orders: Tensor
    signs: Tensor
    grid: tuple[int, int]

    def moved(self, source: Tensor) -> "Puzzle":
        """Return the puzzle with released block b in the place of plain block `source[b]`."""
        back = source.argsort()
        return Puzzle(self.theirs[back][:, back], self.ours, self.orders, self.signs, self.grid)

    def near(self, block: int) -> list[int]:
        """List the blocks around a block."""
        rows, columns = self.grid
        y, x = divmod(block, columns)
        around = product(range(max(0, y - 1), min(rows, y + 2)), range(max(0, x - 1), min(columns, x + 2)))
        return [a * columns + b for a, b in around if (a, b) != (y, x)]

    @cached_property
    def back(self) -> Tensor:
        """`[S, values]` the place that each value takes, in every state."""
        return self.orders.argsort(1)

    def agreement(self, block: int, others: list[int], state: Tensor) -> Tensor:
        """Return how well a block agrees, in each state, with others whose states are known.

        Args:
            block: which.
            others: the blocks that it is compared with.
            state: `[k, blocks]`, k trials at once.

        Returns:
            `[k, S]`.
        """
        trials, values = len(state), self.orders.shape[1]
        theirs = self.ours.new_empty(trials, values, len(others) * values)  # as if the others were plain
        for number, other in enumerate(others):
            back = self.back[state[:, other]]
            signs = self.signs[state[:, other]].gather(1, back)
            there = self.theirs[block, other][:, back].transpose(0, 1)
            theirs[:, :, number * values:(number + 1) * values] = there * signs[:, None]
        ours = self.ours[block, others].transpose(0, 1).reshape(values, -1)
        together = theirs @ ours.T
        return (together[:, torch.arange(values), self.orders] * self.signs).sum(2)


def by_neighbours(structure: Structure, seen: Tensor, plain: Tensor, rng: torch.Generator,
                  ) -> tuple[KeyMap, float] | None:
    """Guess the key of a cipher whose blocks are in states of their own.

    Args:
        structure: of the key.
        seen: released levels `[N, blocks, values]` around 0.
        plain: public levels `[M, blocks, values]` around 0.
        rng: draws where searches start.

    Returns:
        The map, and the share of the public images' own agreement that it reaches; None where states or values are
        too many, or nothing in the means varies.
    """
    states = _states(structure)
    if states is None or structure.size is None or structure.blocks * structure.values > LARGEST:
        return None
    count, values = structure.blocks, structure.values
    _, height, width = structure.image
    theirs, ours = (correlations(part.flatten(1)).reshape(count, values, count, values).transpose(1, 2).contiguous()
                    for part in (seen, plain))
    puzzle = Puzzle(theirs.float(), ours.float(), *states, (height // structure.size, width // structure.size))
    most = sum(float((ours[b, o] ** 2).sum()) for b in range(count) for o in puzzle.near(b))
    found: list[tuple[float, float, Tensor]] = []
    for source in _arrangements(structure, puzzle.grid, seen, plain, rng):
        means = torch.empty_like(seen[0]).scatter(0, source[:, None].expand(-1, values), seen.mean(0)), plain.mean(0)
        state, reached, far = _solved(puzzle.moved(source), means)
        found.append((reached / max(most, 1e-9), far, torch.stack([source, state])))
    if not found:
        return None
    reached, _, both = best(found)
    source, state = both
    mine = state[source]
    return KeyMap(source, states[0][mine], states[1][mine] < 0), reached


def _states(structure: Structure) -> tuple[Tensor, Tensor] | None:
    """Return orders and signs `[S, values]` of all states of a block; None = there are too many."""
    values = structure.values
    if structure.inside == "states" and structure.states is not None:
        orders, signs = structure.states, torch.ones(len(structure.states), values)
        return (torch.cat([orders, orders]), torch.cat([signs, -signs])) if structure.negated else (orders, signs)
    if structure.inside == "own" and not structure.moved and values <= FEW:
        every = list(product(permutations(range(values)), product((1.0, -1.0), repeat=values)))
        return (torch.tensor([order for order, _ in every]),
                torch.tensor([sign for _, sign in every]))
    return None


def _arrangements(structure: Structure, grid: tuple[int, int], seen: Tensor, plain: Tensor, rng: torch.Generator,
                  ) -> list[Tensor]:
    """List where the blocks may have come from: as their means go together, and the same turned and mirrored."""
    if not structure.moved:
        return [torch.arange(structure.blocks)]
    theirs, ours = (correlations(part.mean(2)) for part in (seen, plain))
    found = matched_by(theirs.abs(), ours.abs(), rng) if structure.negated else matched_by(theirs, ours, rng)
    if found is None:
        return []
    source, _ = found
    places = symmetries(grid[0]) if grid[0] == grid[1] else \
        torch.stack([torch.arange(structure.blocks).reshape(grid).flip(axes).flatten()
                     for axes in ((), (0,), (1,), (0, 1))])
    return [way[source] for way in places]


def _solved(puzzle: Puzzle, means: tuple[Tensor, Tensor]) -> tuple[Tensor, float, float]:
    """Return the states `[blocks]`, their agreement, and how far the decoded means lie from the public ones.

    What is the same for all blocks (colours exchanged, all negated) hardly changes the agreement; the means tell.
    """
    path = _path(puzzle)
    short = _follow(puzzle, path[:_FIRST], torch.arange(len(puzzle.orders)))
    leading = _total(puzzle, path[:_FIRST], short).argsort(descending=True, stable=True)[:STARTS]
    states = _follow(puzzle, path, leading)
    for block in path:  # once more, now that all neighbours are known
        states[:, block] = puzzle.agreement(block, puzzle.near(block), states).argmax(1)
    totals = _total(puzzle, path, states).tolist()
    reached, far, state = best([(total, _distance(puzzle, state, means), state)
                                for total, state in zip(totals, states, strict=True)])
    return state, reached, far


def best(found: list[tuple[float, float, Tensor]]) -> tuple[float, float, Tensor]:
    """Return what is nearest in its means among those that agree as well as any: (agreement, distance, anything)."""
    top = max(one[0] for one in found)
    return min((one for one in found if one[0] >= top - ALIKE * abs(top)), key=lambda one: one[1])


def _path(puzzle: Puzzle) -> list[int]:
    """List the blocks from the middle outwards, each a neighbour of one before."""
    rows, columns = puzzle.grid
    path = [rows // 2 * columns + columns // 2]
    for block in path:
        path += [other for other in puzzle.near(block) if other not in path]
    return path


def _follow(puzzle: Puzzle, path: list[int], starts: Tensor) -> Tensor:
    """Return the states `[k, blocks]` that follow, block by block, from each of the first, `[k]`."""
    state = starts[:, None].repeat(1, puzzle.grid[0] * puzzle.grid[1])
    known = {path[0]}
    for block in path[1:]:
        state[:, block] = puzzle.agreement(block, [o for o in puzzle.near(block) if o in known], state).argmax(1)
        known.add(block)
    return state


def _total(puzzle: Puzzle, path: list[int], state: Tensor) -> Tensor:
    """Return how well blocks agree with those of their neighbours that are on the path, `[k]` for states `[k, ...]`."""
    some, total = set(path), torch.zeros(len(state), dtype=torch.float64)
    for block in path:
        if others := [other for other in puzzle.near(block) if other in some]:
            total += puzzle.agreement(block, others, state).gather(1, state[:, block, None])[:, 0]
    return total


def _distance(puzzle: Puzzle, state: Tensor, means: tuple[Tensor, Tensor]) -> float:
    """Return the mean squared difference of decoded and public means."""
    back = puzzle.back[state]
    decoded = (means[0] * puzzle.signs[state]).gather(1, back)
    return float((decoded - means[1]).square().mean())
