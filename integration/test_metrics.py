"""
What metrics say on each driver.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from integration.databases import DRIVERS, server_address
from integration.test_modes import database
from tests.conftest import run
from tests.recording import points

# The status codes of what the scenario does wrong: no such table, and a key that exists.
CODES = {"mysql": ("1146", "1062"), "postgresql": ("42P01", "23505"), "sqlite": ("1", "1555")}
if sys.version_info < (3, 11):  # sqlite3 did not tell the code
    CODES["sqlite"] = ("sqlite3.OperationalError", "sqlite3.IntegrityError")


async def statements(url: URL) -> None:
    engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TEMPORARY TABLE tea (id INTEGER PRIMARY KEY)"))
        await connection.execute(text("INSERT INTO tea VALUES (:id)"), [{"id": 1}, {"id": 2}])
        for _ in range(3):
            await connection.execute(text("SELECT * FROM tea WHERE id = :id"), {"id": 1})
        rows = await connection.stream(text("SELECT * FROM tea"))
        assert [(1,), (2,)] == [tuple(row) async for row in rows]
        for wrong in ("SELECT * FROM coffee", "INSERT INTO tea VALUES (1)"):
            with pytest.raises(DBAPIError):
                async with connection.begin_nested():
                    await connection.execute(text(wrong))
        await connection.rollback()
    await engine.dispose()


@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize("driver", list(DRIVERS))
def test_durations(
    driver: str, mode: str, measured: Callable[..., None], reader: InMemoryMetricReader, tmp_path: Path
) -> None:
    """
    Each statement is measured once whatever the mode, with the same attributes; what is no statement is not.
    """
    url = database(driver, tmp_path)
    measured(mode=mode)
    run(statements(url))
    system = {"mysql": "mariadb"}.get(DRIVERS[driver], DRIVERS[driver])
    where = {"db.system.name": system, "db.namespace": url.database, "server.address": server_address(url)}
    if url.port not in (None, 3306, 5432):
        where["server.port"] = url.port

    def point(summary: str, code: str | None = None) -> frozenset[Any]:
        status = code if code and not code.startswith("sqlite3.") else None
        said = {**where, "db.query.summary": summary, "error.type": code, "db.response.status_code": status}
        return frozenset((key, value) for key, value in said.items() if value is not None)

    missing, exists = CODES[DRIVERS[driver]]
    assert {
        point("CREATE TABLE tea"): 1,
        point("BATCH INSERT tea"): 1,
        point("SELECT tea"): 4,
        point("SELECT coffee", missing): 1,
        point("INSERT tea", exists): 1,
    } == {key: value.count for key, value in points(reader, "db.client.operation.duration").items()}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("driver", list(DRIVERS))
def test_dropped_engine(
    driver: str, skip: bool, measured: Callable[..., None], reader: InMemoryMetricReader, tmp_path: Path
) -> None:
    """
    An engine that is dropped without a word disappears from the export, also while its driver's connection is open.
    """
    url = database(driver, tmp_path)
    measured()

    async def main() -> None:
        engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, execution_options={"otel_skip": skip})
        async with engine.connect() as connection:
            driver_connection: Any = (await connection.get_raw_connection()).driver_connection
        assert 2 == len(points(reader, "db.client.connection.count"))
        del engine, connection
        gc.collect()
        assert {} == points(reader, "db.client.connection.count")
        await getattr(driver_connection, "ensure_closed", driver_connection.close)()

    run(main())
