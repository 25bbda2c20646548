from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from integration.databases import DRIVERS
from integration.test_modes import database, execute_directly
from tests.conftest import run
from tests.recording import Recording

# What a caller does with its connection.
PLAIN, FAILING, RAW, CANCELLED = range(4)
CALLERS, POOL_SIZE = range(100), 7


def way_of(number: int) -> int:
    """
    Tell what a caller does. Those who get a connection at once are not cancelled: aiosqlite would leave it open.
    """
    return number % 4 if number >= POOL_SIZE else PLAIN


CANCELLED_CALLERS = [number for number in CALLERS if way_of(number) == CANCELLED]


async def go(connection: AsyncConnection, number: int) -> None:
    """
    Execute a statement that has the caller's number in it.
    """
    sql, way = f"SELECT 1 FROM (SELECT 1) AS t{number}", way_of(number)
    if way == RAW:
        raw: Any = await connection.get_raw_connection()
        await execute_directly(raw.driver_connection, sql)
    elif way == FAILING:
        with pytest.raises(DBAPIError):
            await connection.execute(text(f"SELECT 1 FROM nowhere{number}"))
    else:
        await connection.execute(text(sql))


def lines(mode: str, number: int) -> list[Any]:
    """
    Return what a caller's statement gives; where it has been cancelled, that has been before it began.
    """
    way = way_of(number)
    if way == CANCELLED or (way == RAW and mode == "engine"):
        return []
    if way == FAILING:
        line = f"SELECT nowhere{number} ERROR db.query.text='SELECT ? FROM nowhere{number}'"
    else:
        line = f"SELECT SELECT db.query.text='SELECT ? FROM (SELECT ?) AS t{number}'"
    return [[line, [line]] if mode == "both" and way != RAW else [line]]


@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize("driver", list(DRIVERS))
def test_hundred_callers(
    driver: str, mode: str, agent: Callable[..., None], recording: Recording, tmp_path: Path
) -> None:
    """
    A hundred callers over a pool of seven, of which some fail, some are cancelled while they wait for a connection and
    some go to the driver's own connection: each has its own statement under it.
    """
    url = database(driver, tmp_path)

    async def caller(engine: Any, number: int) -> None:
        with recording.tracer.start_as_current_span(f"caller {number}"):
            async with engine.connect() as connection:
                await go(connection, number)

    async def main() -> None:
        engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, pool_size=POOL_SIZE, max_overflow=0)
        tasks = [asyncio.ensure_future(caller(engine, number)) for number in CALLERS]
        await asyncio.sleep(0)
        for number in CANCELLED_CALLERS:
            tasks[number].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = [asyncio.CancelledError if number in CANCELLED_CALLERS else type(None) for number in CALLERS]
        assert cancelled == [type(result) for result in results]
        await engine.dispose()

    agent(mode=mode, spans="statement")
    run(main())
    expected = [[f"caller {number} INTERNAL", *lines(mode, number)] for number in CALLERS]
    tree = recording.tree("db.query.text")
    assert expected == sorted(tree, key=lambda part: int(part[0].split()[1]))
