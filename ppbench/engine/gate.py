"""Who may run next: the job of the earliest cell, so that rows are finished one after another."""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import count

CELL: ContextVar[int] = ContextVar("cell", default=0)
"""Place in the plan of the cell for which a task works; tasks inherit it."""


class Gate:
    """Lets a number of jobs in at once; of those that wait, the one of the earliest cell comes first."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._order = count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        if self._free > 0:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (CELL.get(), next(self._order), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # the slot came in the same moment
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
