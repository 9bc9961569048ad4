"""Jigsaw assembly from pairwise costs: a genetic search whose every step runs on all boards of all puzzles at once.

A board is a `[H, W]` grid of piece numbers. Every board is grown from a random seed piece: the best piece for any
free place next to those already placed goes there, until all are placed. The frame is left open meanwhile: places
close only when a board would outgrow H x W. Later boards are grown the same way, but pairs that two parent boards
have are preferred: the kernel-growing crossover of Sholomon, David & Netanyahu, "A genetic algorithm-based solver for
very large jigsaw puzzles", CVPR 2013. Costs are as in `_seams`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.blocks import permutations

Grid = tuple[int, int]
_SAME = 1e-4  # costs of boards nearer than this are rounding


@dataclass(frozen=True)
class Search:
    """How hard to search; costs and bonuses are in units of the (log) costs.

    Attributes:
        restarts: boards a puzzle: grown at first, kept, and bred anew in every generation.
        generations: at most this many crossovers follow the first boards.
        patience: a puzzle whose best board has not improved for so many generations is left as it is.
        noise: standard deviation of what is added to a piece's cost when it competes for a place.
        contact: bonus for each neighbour that a place already has, so that holes are filled before arms grow.
        inherit: bonus for a pair of pieces for each parent that has it.
    """

    restarts: int = 16
    generations: int = 24
    patience: int = 6
    noise: float = 1.5
    contact: float = 2.0
    inherit: float = 2.0


def assemble(costs: Tensor, grid: Grid, rng: torch.Generator, search: Search | None = None) -> Tensor:
    """Find boards of low total cost.

    Args:
        costs: `[N, 2, P, P]` of N puzzles: of piece j to the right of i, and below i.
        grid: (rows, columns) of the boards; rows * columns = P.
        rng: drives the search; the same state gives the same boards.
        search: how hard to try.

    Returns:
        `[N, rows, columns]` int64: the number of the piece at each place.
    """
    count, _, pieces, _ = costs.shape
    if grid[0] * grid[1] != pieces:
        raise ValueError(f"{pieces} pieces do not fill {grid[0]} x {grid[1]} places")
    # Ties go to the lowest number: in the given order that would favour the identity.
    order = permutations(count, pieces, rng)
    shuffled = _reorder(costs.float(), order)
    boards = _evolve(shuffled, grid, rng, search or Search())
    return order.gather(1, boards.flatten(1)).view_as(boards)


def board_costs(costs: Tensor, boards: Tensor) -> Tensor:
    """Add up the costs `[N, 2, P, P]` of all seams on boards `[N, R, H, W]`, R a puzzle: `[N, R]`."""
    puzzle = torch.arange(len(boards))[:, None, None, None]
    across = costs[puzzle, 0, boards[..., :-1], boards[..., 1:]].sum((2, 3))
    down = costs[puzzle, 1, boards[..., :-1, :], boards[..., 1:, :]].sum((2, 3))
    return across + down


def direct_score(boards: Tensor, truth: Tensor) -> Tensor:
    """Direct comparison: the share of places `[N]` with the right piece, boards and truth `[N, H, W]`.

    Give exchangeable pieces (exact copies) one number, and they count as the same.
    """
    return (boards == truth).double().mean((1, 2))


def neighbour_score(boards: Tensor, truth: Tensor) -> Tensor:
    """Neighbour comparison: the share of the true adjacent pairs `[N]` that the boards have, wherever they lie.

    1 for a single piece. Exchangeable pieces: as in `direct_score`.
    """
    base = int(torch.maximum(boards.max(), truth.max())) + 1
    shared = [_multiset_overlap(_pairs(boards, base, axis), _pairs(truth, base, axis), base * base)
              for axis in (1, 2)]
    rows, columns = truth.shape[1:]
    seams = rows * (columns - 1) + columns * (rows - 1)
    return (shared[0] + shared[1]) / seams if seams else torch.ones(len(boards), dtype=torch.float64)


def _pairs(boards: Tensor, base: int, axis: int) -> Tensor:
    size = boards.shape[axis] - 1
    return (boards.narrow(axis, 0, size) * base + boards.narrow(axis, 1, size)).flatten(1)


def _multiset_overlap(a: Tensor, b: Tensor, values: int) -> Tensor:
    def counts(of: Tensor) -> Tensor:
        return torch.zeros(len(of), values, dtype=torch.float64).scatter_add_(1, of, torch.ones(of.shape).double())

    return torch.minimum(counts(a), counts(b)).sum(1)


def _reorder(costs: Tensor, order: Tensor) -> Tensor:
    """Renumber the pieces: new piece i is old piece `order[n, i]`."""
    puzzle = torch.arange(len(costs))[:, None, None, None]
    direction = torch.arange(2)[None, :, None, None]
    return costs[puzzle, direction, order[:, None, :, None], order[:, None, None, :]]


@dataclass
class _Population:
    """Boards `[N, R, H, W]` and their costs `[N, R]`, the best first."""

    boards: Tensor
    costs: Tensor

    def __getitem__(self, puzzles: Tensor) -> "_Population":
        return _Population(self.boards[puzzles], self.costs[puzzles])

    def __setitem__(self, puzzles: Tensor, other: "_Population") -> None:
        self.boards[puzzles], self.costs[puzzles] = other.boards, other.costs


def _fittest(boards: Tensor, costs: Tensor, keep: int) -> _Population:
    """Pick the `keep` cheapest; of boards that cost the same (copies, nearly always) all but one come last."""
    costs, rank = costs.sort(dim=1, stable=True)
    copies = torch.zeros_like(costs, dtype=torch.int8)
    copies[:, 1:] = (costs[:, 1:] - costs[:, :-1]).abs() < _SAME
    kept = copies.argsort(dim=1, stable=True)[:, :keep]
    return _Population(boards[torch.arange(len(boards))[:, None], rank.gather(1, kept)], costs.gather(1, kept))


def _evolve(costs: Tensor, grid: Grid, rng: torch.Generator, search: Search) -> Tensor:
    """Return the best board of every puzzle, `[N, H, W]`."""
    found = _generation(costs, grid, None, rng, search)
    stale = torch.zeros(len(costs), dtype=torch.int64)
    for _ in range(search.generations):
        open_ = (stale < search.patience).nonzero()[:, 0]
        if not len(open_):
            break
        before = found[open_]
        children = _generation(costs[open_], grid, _parents(before.boards, rng), rng, search)
        after = _fittest(torch.cat([before.boards, children.boards], 1), torch.cat([before.costs, children.costs], 1),
                         search.restarts)
        stale[open_] = torch.where(after.costs[:, 0] < before.costs[:, 0] - _SAME, 0, stale[open_] + 1)
        found[open_] = after
    return found.boards[:, 0]


def _parents(boards: Tensor, rng: torch.Generator) -> Tensor:
    """Draw two different boards (where there are two) for each of R children: `[N, R, <= 2, H, W]`."""
    count, kept = boards.shape[:2]
    drawn = torch.rand(count, kept, kept, generator=rng).argsort(2)[:, :, :2]
    return boards[torch.arange(count)[:, None, None], drawn]


def _generation(costs: Tensor, grid: Grid, parents: Tensor | None, rng: torch.Generator, search: Search) -> _Population:
    """Grow `restarts` boards a puzzle, with or without parents; the best first."""
    growth = _Growth(costs, grid, parents, rng, search)
    boards = growth.run().view(len(costs), search.restarts, *grid)
    return _fittest(boards, board_costs(costs, boards), search.restarts)


class _Growth:
    """Grows B = N * R boards at once, one piece a step; "no piece" is the number P.

    A board lies on a canvas on which its seed may end up in any corner of the H x W frame, with a margin of empty
    places around. For every place the best free piece and its price are kept; a step recomputes only places whose
    neighbours or whose best piece have just been taken.
    """

    def __init__(self, costs: Tensor, grid: Grid, parents: Tensor | None, rng: torch.Generator,
                 search: Search) -> None:
        puzzles, pieces = len(costs), costs.shape[-1]
        self.search, self.rng, self.pieces = search, rng, pieces
        self.extent = torch.tensor(grid)
        self.height, self.width = 2 * grid[0] + 1, 2 * grid[1] + 1
        self.steps = torch.tensor([-1, 1, -self.width, self.width])
        boards, places = puzzles * search.restarts, self.height * self.width
        self.each = torch.arange(boards)
        self.table = _price_rows(costs)
        self.first_row = (self.each // search.restarts)[:, None] * 4 * (pieces + 1) + torch.arange(4) * (pieces + 1)
        self.heirlooms = None if parents is None else _neighbours(parents.flatten(0, 1), pieces)
        self.canvas = torch.full((boards, places), pieces)
        self.taken = torch.zeros(boards, pieces + 1, dtype=torch.bool)
        self.taken[:, pieces] = True
        self.price = torch.full((boards, places), torch.inf)
        self.choice = torch.full((boards, places), pieces)
        self.low = torch.tensor([grid[0], grid[1]]).repeat(boards, 1)
        self.high = self.low.clone()

    def run(self) -> Tensor:
        """Return the finished boards, `[B, H, W]`."""
        place = torch.full_like(self.each, int(self.extent[0]) * self.width + int(self.extent[1]))
        piece = torch.randint(self.pieces, place.shape, generator=self.rng)
        self._put(place, piece)
        for _ in range(self.pieces - 1):
            self._reprice(place, piece)
            place = self.price.argmin(1)
            piece = self.choice[self.each, place]
            self._put(place, piece)
        return self._framed()

    def _put(self, place: Tensor, piece: Tensor) -> None:
        self.canvas[self.each, place] = piece
        self.taken[self.each, piece] = True
        self._close(self.each, place)
        where = torch.stack([place // self.width, place % self.width], 1)
        self.low, self.high = torch.minimum(self.low, where), torch.maximum(self.high, where)

    def _close(self, board: Tensor, place: Tensor) -> None:
        self.price[board, place] = torch.inf
        self.choice[board, place] = self.pieces

    def _reprice(self, place: Tensor, piece: Tensor) -> None:
        """Find the best free piece anew where the one just placed changed something."""
        inside = self._inside()
        self.price.masked_fill_(~inside, torch.inf)
        self.choice.masked_fill_(~inside, self.pieces)
        changed = self.choice == piece[:, None]
        beside = place[:, None] + self.steps
        opened = (self.canvas.gather(1, beside) == self.pieces) & inside.gather(1, beside)
        changed.scatter_(1, beside, opened)
        board, where = changed.nonzero(as_tuple=True)
        around = self.canvas[board[:, None], where[:, None] + self.steps]
        price, choice = self._prices(board, around).min(1)
        self.price[board, where] = price - self.search.contact * (around < self.pieces).sum(1)
        self.choice[board, where] = choice

    def _prices(self, board: Tensor, around: Tensor) -> Tensor:
        """Price every piece `[D, P + 1]` for D places with the neighbours `around` `[D, 4]`; taken ones: infinite."""
        rows = self.first_row[board] + around
        prices = self.table[rows[:, 0]]
        for direction in range(1, 4):
            prices += self.table[rows[:, direction]]
        prices += self.search.noise * torch.randn(prices.shape, generator=self.rng)
        if self.heirlooms is not None:
            mates = self.heirlooms[board[:, None], :, torch.arange(4), around].flatten(1)
            prices.scatter_add_(1, mates, prices.new_tensor(-self.search.inherit).expand(mates.shape))
        return prices.masked_fill_(self.taken[board], torch.inf)

    def _inside(self) -> Tensor:
        """Say which places `[B, places]` leave the board within H x W."""
        first, last = self.high - self.extent, self.low + self.extent
        rows, columns = torch.arange(self.height), torch.arange(self.width)
        in_rows = (rows > first[:, :1]) & (rows < last[:, :1])
        in_columns = (columns > first[:, 1:]) & (columns < last[:, 1:])
        return (in_rows[:, :, None] & in_columns[:, None, :]).flatten(1)

    def _framed(self) -> Tensor:
        rows = self.low[:, :1] + torch.arange(int(self.extent[0]))
        columns = self.low[:, 1:] + torch.arange(int(self.extent[1]))
        return self.canvas[self.each[:, None, None], rows[:, :, None] * self.width + columns[:, None, :]]


def _price_rows(costs: Tensor) -> Tensor:
    """Lay out the costs `[N, 2, P, P]` as rows to add up: `[N * 4 * (P + 1), P + 1]`.

    The row of (puzzle, direction, piece) prices every piece beside that one; the directions say where the piece
    already placed lies: left, right, above, below. The last row and column stand for "no piece".
    """
    rows = torch.stack([costs[:, 0], costs[:, 0].mT, costs[:, 1], costs[:, 1].mT], 1)
    return torch.nn.functional.pad(rows, (0, 1, 0, 1)).reshape(-1, costs.shape[-1] + 1)


def _neighbours(parents: Tensor, nobody: int) -> Tensor:
    """Return who stands beside whom on boards `[B, K, H, W]`: `[B, K, 4, P + 1]`, directions as in `_price_rows`."""
    framed = torch.nn.functional.pad(parents, (1, 1, 1, 1), value=nobody)
    beside = [framed[:, :, 1:-1, 2:], framed[:, :, 1:-1, :-2], framed[:, :, 2:, 1:-1], framed[:, :, :-2, 1:-1]]
    mates = parents.new_full((*parents.shape[:2], 4, nobody + 1), nobody)
    for direction, of in enumerate(beside):
        mates[:, :, direction].scatter_(2, parents.flatten(2), of.flatten(2))
    return mates
