"""
What the agent says, on every driver, is as OpenTelemetry's conventions want it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from integration.databases import DRIVERS, driver_url
from tests.conftest import run
from tests.conventions import dup_span_problems, metric_problems, old_span_problems, span_problems
from tests.recording import Recording, points


async def scenario(url: URL) -> None:
    """
    Make spans of every kind, on a table of its own.
    """
    metadata = MetaData()
    table = Table(
        f"t_{uuid.uuid4().hex[:8]}",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("name", String(20), unique=True, nullable=False),
    )
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all, checkfirst=False)
    try:
        async with engine.begin() as connection:
            await connection.execute(insert(table).values(name="a"))
            await connection.execute(insert(table), [{"name": "b"}, {"name": "c"}])
            async with connection.begin_nested():
                await connection.execute(insert(table), [{"name": "d"}])
            with pytest.raises(IntegrityError):
                async with connection.begin_nested():
                    await connection.execute(insert(table).values(name="a"))
            assert 2 == len((await connection.execute(select(table).where(table.c.name.in_(["a", "b"])))).all())
            await connection.execute(text("SELECT 'a', 12"))
            await connection.exec_driver_sql(f"SELECT name FROM {table.name}")
        async with engine.connect() as connection:
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT FROM nowhere WHERE"))
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.drop_all, checkfirst=False)
        await engine.dispose()


async def refused(url: URL) -> None:
    """
    Fail to connect: nothing listens on the port, and SQLite's folder is not there.
    """
    in_the_way = {"database": "/nowhere/at/all.db"} if url.get_backend_name() == "sqlite" else {"port": 1}
    with pytest.raises((DBAPIError, OSError)):
        await create_async_engine(url.set(**in_the_way)).connect()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("mode", "opt_in", "problems"),
    [
        pytest.param("auto", "", old_span_problems, id="old"),
        pytest.param("auto", "database", span_problems, id="stable"),
        pytest.param("auto", "database/dup", dup_span_problems, id="dup"),
        pytest.param("driver", "database", span_problems, id="driver"),
        pytest.param("both", "database", span_problems, id="both"),
    ],
)
def test_names(
    driver: str,
    mode: str,
    opt_in: str,
    problems: Callable[[Any], list[str]],
    agent: Callable[..., None],
    recording: Recording,
    reader: Any,
) -> None:
    """
    Spans and metrics are in order in each mode, whichever names are asked for.
    """
    url = driver_url(driver)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    agent(opt_in, mode=mode, spans="statement,connect,transaction", meter_provider=provider)
    run(scenario(url))
    run(refused(url))
    recording.assert_all_ended()
    assert {"connect", "COMMIT", "SAVEPOINT"} <= set(recording.names)
    assert [] == [(span.name, found) for span in recording.ended if (found := problems(span))]
    assert {"db.query.summary"} < {key for point in points(reader, "db.client.operation.duration") for key, _ in point}
    assert [] == metric_problems(reader.get_metrics_data())
