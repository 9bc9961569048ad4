"""From pieces to boards: costs, as they are measured or learnt, and the search, image by image or all of a key at once.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppbench.attacks._arranger import believed
from ppbench.attacks._arranger_net import Arranger
from ppbench.attacks._assemble import Grid, assemble
from ppbench.attacks._boards import Boards, stacked
from ppbench.attacks._seam_net import SeamNet, learned
from ppbench.attacks._seams import tables
from ppbench.attacks._solver import Search
from ppbench.attacks._states import PLAIN, States
from ppbench.blocks import permute_rows
from ppbench.errors import UserError

_CHUNK = 2**24  # entries of the tables of all seams that are held at a time; the results of a run depend on it
_UNLIKELY = -7.0  # log-probability of a place, below which it says no more
_MOST = 2**29  # entries for one puzzle: 2 GiB each, and some five such tables are held


@dataclass(frozen=True)
class Solver:
    """Solves puzzles of pieces.

    Attributes:
        search: how hard to try.
        states: that pieces may be in.
        net: looks at the best seams; None = they cost what is measured.
        looked_at: seams at every side of a piece that it looks at.
        places: believes where pieces lie; None = nothing is known of that.
        trust: of a place's cost, the negative logarithm of its probability.
    """

    search: Search = field(default_factory=Search)
    states: States = PLAIN
    net: SeamNet | None = None
    looked_at: int = 12
    places: Arranger | None = None
    trust: float = 1.0

    def each(self, pieces: Tensor, grid: Grid, rng: torch.Generator) -> Boards:
        """Solve every image of pieces `[N, P, C, s, s]` on its own."""
        return stacked([assemble(self.costs(some), grid, rng, self.search, self.states, self._place_costs(some))
                        for some in self._chunks(pieces)])

    def together(self, pieces: Tensor, grid: Grid, rng: torch.Generator) -> Boards:
        """Solve images under one key as one puzzle, its costs the mean of theirs: one board."""
        total: Tensor = sum(self.costs(some).sum(0) for some in self._chunks(pieces))  # type: ignore[assignment]
        return assemble(total[None] / len(pieces), grid, rng, self.search, self.states)

    def costs(self, pieces: Tensor) -> Tensor:
        """Return log costs `[N, 4, P, P, S]`."""
        measured = tables(pieces, self.states)
        return measured.combined() if self.net is None else learned(self.net, pieces, measured, self.looked_at)

    def _place_costs(self, pieces: Tensor) -> Tensor | None:
        """Return what each piece costs at each place, `[N, P, P]`."""
        if self.places is None:
            return None
        return -self.trust * believed(self.places, pieces).flatten(2).clamp(min=_UNLIKELY)

    def laid(self, pieces: Tensor, boards: Boards) -> Tensor:
        """Return the pieces in the order and the states of the boards, `[N, P, C, s, s]`."""
        return self.states.put(permute_rows(pieces, boards.pieces.flatten(1)), boards.states.flatten(1))

    def _chunks(self, pieces: Tensor) -> tuple[Tensor, ...]:
        """Split images by memory."""
        entries = check_size((1, pieces.shape[1]), self.states)
        return torch.split(pieces, max(1, _CHUNK // entries))


def check_size(grid: Grid, states: States) -> int:
    """Return how many entries a table of all seams has.

    Raises:
        UserError: there are too many.
    """
    pieces = grid[0] * grid[1]
    entries = 4 * pieces**2 * len(states)
    if entries > _MOST:
        raise UserError(f"{pieces:,} pieces{f' in {len(states)} states' if len(states) > 1 else ''} would need tables "
                        f"of {entries * 4 / 2**30:.0f} GiB each: choose larger pieces")
    return entries
