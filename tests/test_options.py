"""
What the application asks for, or asks to be left out.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import Column, DateTime, Integer, LargeBinary, MetaData, String, Table, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

import otel_async_sqla_agent
from otel_async_sqla_agent._execution import known_rows
from otel_async_sqla_agent._facts import CAPTURED_PARAMETERS, parameter_attributes
from otel_async_sqla_agent._guard import FAILURE_LIMIT
from tests.conftest import run
from tests.conventions import metric_problems, span_problems
from tests.recording import Recording, points

MEMORY = "sqlite+aiosqlite://"
SQLALCHEMY_2 = not sqlalchemy.__version__.startswith("1.")
metadata = MetaData()
tea = Table(
    "tea",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String),
    Column("made", DateTime),
    Column("leaf", LargeBinary),
)
PARAMETER = "db.query.parameter."


def parameters(span: Any) -> dict[str, Any]:
    return {key[len(PARAMETER) :]: value for key, value in span.attributes.items() if key.startswith(PARAMETER)}


async def brew(engine: AsyncEngine) -> None:
    """
    Execute with parameters of several types, as a batch, with none, and with rows that are fetched later.
    """
    made = datetime.datetime(2026, 11, 24)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all, checkfirst=False)
        await connection.execute(insert(tea).values(id=1, name="assam", made=made, leaf=b"\x00"))
        await connection.execute(insert(tea), [{"name": "sencha"}, {"name": None}])
        assert 3 == len((await connection.execute(select(tea.c.id))).all())
        await connection.execute(select(tea.c.id).where(tea.c.id > 99))
        await connection.exec_driver_sql("SELECT name FROM tea WHERE name = :name OR id = :id", {"name": "x", "id": 1})
        async for _ in await connection.stream(select(tea.c.id)):
            pass
    await engine.dispose()


def test_parameters(agent: Callable[..., None], recording: Recording) -> None:
    """
    CAPTURE=parameters writes those of a single execution down as strings, by name or by position.
    """
    agent(spans="statement", capture=["parameters"])
    run(brew(create_async_engine(MEMORY)))
    made = "2026-11-24 00:00:00.000000"
    assert [
        ("CREATE TABLE tea", {}),
        ("INSERT tea", {"0": "1", "1": "assam", "2": made, "3": "1 bytes"}),
        ("BATCH INSERT tea", {}),
        ("SELECT tea", {}),
        ("SELECT tea", {"0": "99"}),
        ("SELECT tea", {"name": "x", "id": "1"}),
        ("SELECT tea", {}),
    ] == [(span.name, parameters(span)) for span in recording.ended]
    assert [] == [problem for span in recording.ended for problem in span_problems(span, opt_in=True)]


@pytest.mark.parametrize("min_duration_ms", [0, 1e-9])
def test_rows(
    min_duration_ms: float, measured: Callable[..., None], recording: Recording, reader: InMemoryMetricReader
) -> None:
    """
    CAPTURE=rows says how many rows have been fetched with the execution, on the span and as a metric; also on a span
    that is made once the statement has taken long enough.
    """
    measured(spans="statement", capture="rows", min_duration_ms=min_duration_ms)
    run(brew(create_async_engine(MEMORY)))
    rows = "db.response.returned_rows"
    assert [None, None, None, 3, 0, 1, None] == [span.attributes.get(rows) for span in recording.ended]
    [point] = points(reader, "db.client.response.returned_rows").values()
    assert (3, 4) == (point.count, point.sum)
    assert [] == metric_problems(reader.get_metrics_data())


def _cursor(name: str, **attributes: Any) -> Any:
    return type(name, (), {"description": (("x",),), **attributes})()


@pytest.mark.parametrize(
    ("cursor", "rows"),
    [
        pytest.param(_cursor("AsyncAdapt_x_cursor", _rows=[1, 2]), 2, id="fetched"),
        pytest.param(_cursor("AsyncAdapt_x_cursor", _rows=[], description=None), None, id="no-rows-to-fetch"),
        pytest.param(_cursor("AsyncAdapt_x_ss_cursor", _rows=[]), None, id="server-side"),
        pytest.param(_cursor("AnotherCursor"), None, id="another"),
    ],
)
def test_known_rows(cursor: Any, rows: int | None) -> None:
    """
    A server-side cursor has no rows yet, whatever it inherits.
    """
    assert rows == known_rows(cursor)


def test_nothing_is_captured_by_default(measured: Callable[..., None], recording: Recording, reader: Any) -> None:
    """
    Without CAPTURE there are neither parameters nor rows.
    """
    measured(spans="statement")
    run(brew(create_async_engine(MEMORY)))
    assert [] == [key for span in recording.ended for key in span.attributes if "parameter" in key or "rows" in key]
    assert {} == points(reader, "db.client.response.returned_rows")


class Stubborn:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({"a": 1, "b": None}, {"a": "1", "b": "None"}, id="names"),
        pytest.param((True, 1.5), {"0": "True", "1": "1.5"}, id="positions"),
        pytest.param("text", {"0": "text"}, id="single"),
        pytest.param(["x" * 9], {"0": "xxxxxxx…"}, id="cut"),
        pytest.param([b"x" * 9, memoryview(b"xx")], {"0": "9 bytes", "1": "2 bytes"}, id="bytes"),
        pytest.param([Stubborn()], {"0": "Stubborn"}, id="no-text"),
        pytest.param((), {}, id="none"),
    ],
)
def test_parameter_attributes(values: object, expected: dict[str, str]) -> None:
    """
    Whatever a value is, a string stands for it.
    """
    assert {f"{PARAMETER}{key}": value for key, value in expected.items()} == parameter_attributes(values, 8)


def test_many_parameters() -> None:
    """
    A long IN list leaves room for the span's other attributes.
    """
    assert CAPTURED_PARAMETERS == len(parameter_attributes(list(range(1000)), 9))


@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize(
    ("engine_options", "connection_options", "statement_options"),
    [
        pytest.param({"otel_skip": True}, {}, {}, id="engine"),
        pytest.param({}, {"otel_skip": True}, {}, id="connection"),
        pytest.param({}, {}, {"otel_skip": True}, id="statement"),
    ],
)
def test_skip(
    mode: str,
    engine_options: dict[str, Any],
    connection_options: dict[str, Any],
    statement_options: dict[str, Any],
    measured: Callable[..., None],
    recording: Recording,
    reader: InMemoryMetricReader,
) -> None:
    """
    `otel_skip` on an engine, a connection or a statement makes no span, and the duration is recorded.
    """
    measured(mode=mode, spans="statement")

    async def main() -> None:
        engine = create_async_engine(MEMORY, poolclass=StaticPool)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all, checkfirst=False)
        recording.clear()
        copy = engine.execution_options(**engine_options)
        async with copy.begin() as connection:
            connection = await connection.execution_options(**connection_options)
            statement = insert(tea).execution_options(**statement_options)
            await connection.execute(statement.values(name="a"))
            await connection.execute(statement, [{"name": "b"}, {"name": "c"}])
            if SQLALCHEMY_2:
                await connection.execute(statement.returning(tea.c.id), [{"name": "d"}, {"name": "e"}])
        assert [] == recording.names
        async with engine.connect() as connection:
            await connection.execute(select(tea.c.id))
        await engine.dispose()

    run(main())
    expected = [["SELECT tea", ["SELECT tea"]]] if mode == "both" else [["SELECT tea"]]
    assert expected == recording.tree()
    durations = points(reader, "db.client.operation.duration").values()
    assert (5 if SQLALCHEMY_2 else 4) == sum(point.count for point in durations)


@pytest.mark.parametrize("skip", [True, False])
def test_skipped_connection_that_is_invalidated(
    skip: bool, agent: Callable[..., None], recording: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A connection may get the option while it has none of the driver's; that is no failure of the engine layer's.
    """
    agent()

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        for _ in range(FAILURE_LIMIT):
            async with engine.connect() as connection:
                await connection.invalidate()
                await connection.execution_options(otel_skip=skip)
        recording.clear()
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        await engine.dispose()

    run(main())
    assert ["connect", "SELECT"] == recording.names
    assert [] == [record.message for record in caplog.records]


@pytest.mark.parametrize("mode", ["auto", "driver"])
@pytest.mark.parametrize("copied", [False, True], ids=["engine", "copy"])
def test_skipped_engine_connects_silently(
    mode: str, copied: bool, agent: Callable[..., None], recording: Recording
) -> None:
    """
    An engine that has `otel_skip` itself makes no `connect` span either, and gets its method back.
    """
    agent(mode=mode)
    options = {"otel_skip": True}

    async def main() -> AsyncEngine:
        engine = create_async_engine(MEMORY, **({} if copied else {"execution_options": options}))
        skipping = engine.execution_options(**options) if copied else engine
        async with skipping.connect() as connection:
            await connection.execute(text("SELECT 1"))
        await skipping.dispose()
        assert [] == recording.names
        if copied:  # what it is a copy of goes on as before
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            await engine.dispose()
        return skipping

    engine = run(main())
    assert (["connect", "SELECT"] if copied else []) == recording.names
    otel_async_sqla_agent.uninstrument()
    assert "raw_connection" not in vars(engine.sync_engine)


@pytest.mark.parametrize("mode", ["engine", "driver", "both"])
def test_suppressed(
    mode: str, measured: Callable[..., None], recording: Recording, reader: InMemoryMetricReader
) -> None:
    """
    Under OpenTelemetry's own switch neither layer says anything, nor does a metric of what happens.
    """
    measured(mode=mode, spans="statement,connect,transaction", capture="rows")

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        with suppress_instrumentation():
            await brew(engine)

    run(main())
    assert [] == recording.started
    data = reader.get_metrics_data()
    kinds = {
        metric.name: metric.data.data_points
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if not metric.name.startswith("db.client.connection.") or metric.name.endswith("_time")
    }
    assert {} == kinds
