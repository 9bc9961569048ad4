"""The gate lets the earliest cell in first, and loses no slot."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from ppbench.engine.gate import CELL, Gate


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 4))
def test_never_more_than_the_slots_and_earliest_first(cells: list[int], slots: int) -> None:
    async def scenario() -> list[int]:
        gate, inside, entered = Gate(slots), [0], []

        async def work(cell: int) -> None:
            CELL.set(cell)
            async with gate.entered():
                inside[0] += 1
                assert inside[0] <= slots
                entered.append(cell)
                await asyncio.sleep(0)
                inside[0] -= 1

        await asyncio.gather(*(work(cell) for cell in cells))
        return entered

    entered = asyncio.run(scenario())
    assert sorted(entered) == sorted(cells)
    # The first `slots` find the gate open; the others come in order.
    assert entered[slots:] == sorted(cells[slots:])


def test_a_cancelled_one_gives_its_place_away() -> None:
    async def scenario() -> str:
        gate = Gate(1)

        async def hold() -> None:
            async with gate.entered():
                await asyncio.sleep(60)

        holder = asyncio.create_task(hold())
        await asyncio.sleep(0)
        waiter = asyncio.create_task(hold())
        await asyncio.sleep(0)
        waiter.cancel()
        holder.cancel()
        await asyncio.gather(holder, waiter, return_exceptions=True)
        async with gate.entered():
            return "in"

    assert asyncio.run(asyncio.wait_for(scenario(), 5)) == "in"
