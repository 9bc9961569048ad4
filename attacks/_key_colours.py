"""Rows and columns of a table told apart by what they hold at one another, in whatever order they come.

Colour refinement (Weisfeiler & Leman 1968): a column's colour comes from its cells and their rows' colours, a row's
from its cells and their columns' colours, again and again. Tables that are the same up to the order of rows and
columns, and the signs of columns, get the same colours.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

ROUNDS = 4
_ODD = -7046029254386353131  # 2^64 over the golden ratio


@dataclass(frozen=True)
class Table:
    """What is to be told apart.

    Attributes:
        cells: `[R, C]` int64 hashes.
        rows: `[R]` int64, what is known of the rows: equal for those that may be one another.
        columns: `[C]` int64, the same of the columns.
        moved: whether rows may be in any order.
    """

    cells: Tensor
    rows: Tensor
    columns: Tensor
    moved: bool

    @classmethod
    def of(cls, cells: Tensor, moved: bool) -> "Table":
        """Return a table of which nothing is known, or (rows that stay) the places of its rows."""
        count, width = cells.shape
        rows = torch.zeros(count, dtype=torch.int64) if moved else torch.arange(count)
        return cls(cells, rows, torch.zeros(width, dtype=torch.int64), moved)

    def marked(self, axis: int, place: int, mark: int) -> "Table":
        """Return the table with one row (axis 0) or column (axis 1) that is known."""
        known = (self.rows, self.columns)[axis].clone()
        known[place] = mark * _ODD
        return replace(self, rows=known) if axis == 0 else replace(self, columns=known)

    def colours(self) -> tuple[Tensor, Tensor]:
        """Return the colours of the rows `[R]` and columns `[C]`; a column's negative has the negated colour."""
        rows = mixed(self.rows)
        for _ in range(ROUNDS):
            up, down = (mixed(mixed(sign * self.cells + rows[:, None]).sum(0) + self.columns) for sign in (1, -1))
            columns = up - down
            upright = torch.where(up < down, self.cells, torch.where(up > down, -self.cells, folded(self.cells)))
            if self.moved:
                rows = mixed(mixed(upright + folded(columns) * _ODD).sum(1) + self.rows)
        return rows, columns


def mixed(values: Tensor) -> Tensor:
    """Scatter int64 values, so that sums of them tell sets apart."""
    for shift in (31, 29, 32):
        values = (values ^ (values >> shift)) * _ODD
    return values


def folded(hashes: Tensor) -> Tensor:
    """Return the same for a hash and its negative."""
    return torch.minimum(hashes, -hashes)
