"""
No value of a user's leaves the process: one canary in every place where one can be, and captures of all that is said.
"""

from __future__ import annotations

import importlib
import io
import logging
import sqlite3
import uuid
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from sqlalchemy import JSON, Column, Integer, MetaData, String, Table, bindparam, func, insert, literal, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

import otel_async_sqla_agent
from integration.conftest import Receiver
from integration.databases import DRIVERS, driver_url
from tests.conftest import run
from tests.recording import Recording

CANARY = "cAnArY"

CONNECT_ARGUMENTS = {
    "aiomysql": {"init_command": f"SET @who = '{CANARY}'", "program_name": CANARY},
    "aiosqlite": {"uri": True},
    "asyncmy": {"init_command": f"SET @who = '{CANARY}'"},
    "asyncpg": {"server_settings": {"application_name": CANARY}},
    "psycopg": {"application_name": CANARY},
}


def secret_url(driver: str) -> URL:
    """
    Return the URL of a database with the canary in it; SQLite has no password, but URIs with keys.
    """
    url = driver_url(driver)
    if driver == "aiosqlite":
        return url.set(database=f"file:m{uuid.uuid4().hex[:8]}", query={"mode": "memory", "key": CANARY, "uri": "true"})
    return url if DRIVERS[driver] == "mysql" else url.set(password=CANARY)


async def scenario(url: URL, connect_arguments: dict[str, Any]) -> None:
    """
    Put the canary everywhere, in statements that succeed and in such that fail.
    """
    metadata = MetaData()
    table = Table(
        f"t_{uuid.uuid4().hex[:8]}",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("name", String(60), unique=True),
        Column("note", String(60), nullable=False),
        Column("document", JSON),
    )
    engine = create_async_engine(
        url,
        connect_args=connect_arguments,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=0.01,
    )
    row = {"name": CANARY, "note": CANARY, "document": {CANARY: [CANARY]}}
    rows = [{**row, "name": f"{CANARY} {number}"} for number in range(30)]
    columns = f"{table.name} (id, name, note)"
    async with engine.connect() as connection, connection.begin() as transaction:

        async def execute(statement: Any, *parameters: Any) -> None:
            with suppress(DBAPIError):
                async with connection.begin_nested():
                    await connection.execute(statement, *parameters)

        await connection.run_sync(metadata.create_all, checkfirst=False)
        with pytest.raises(sqlalchemy.exc.TimeoutError):
            await engine.connect()
        for _ in range(2):  # what went well fails again: it is there already
            await execute(insert(table).values(row))
            await execute(insert(table), rows)
            await execute(text(f"INSERT INTO {columns} VALUES (91, '{CANARY} 91', '{CANARY}')"))
        await execute(text(f"INSERT INTO {columns} VALUES (92, '{CANARY} 92', NULL)"))
        await execute(text(f"INSERT INTO {columns} VALUES (93, '{CANARY * 20}', '')"))
        await execute(text(f"INSERT INTO {columns} VALUES (94, :name, NULL)"), {"name": CANARY})
        await execute(select(bindparam("x", CANARY, literal_execute=True), literal(CANARY), table.c.id))
        await execute(select(table).where(table.c.name.in_([CANARY, f"{CANARY} 2"])))
        await execute(text(f"SELECT '{CANARY}', '{{\"{CANARY}\": 1}}' -- {CANARY}"))
        await execute(text(f"SELECT 1 /* {CANARY} */ FROM nowhere WHERE x = '{CANARY}'"))
        await execute(text(f"SELECT 1 1 '{CANARY}'"))
        await execute(text(f"SELECT CAST('{CANARY}' AS DECIMAL)"))
        await execute(text("SELECT id FROM nowhere WHERE x = :x"), {"x": CANARY})
        found = await connection.execute(select(func.count()).select_from(table).where(table.c.note == CANARY))
        assert 32 == found.scalar()
        await transaction.rollback()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
    await engine.dispose()


async def direct(url: URL) -> None:
    """
    Put the canary into statements on a connection that is opened without SQLAlchemy.
    """
    driver = str(url.get_driver_name())
    module = importlib.import_module(driver)
    host = url.host or url.query.get("host")
    arguments = {"host": host, "port": url.port, "user": url.username, "password": url.password}
    given = {name: value for name, value in arguments.items() if value}
    literal_text, placeholder = f"SELECT '{CANARY}', 1", {"aiosqlite": "?"}.get(driver, "%s")
    statements: list[tuple[Any, ...]] = [
        (literal_text,),
        (f"SELECT {placeholder}, 'fixed'", (CANARY,)),
        (f"SELECT 1 1 '{CANARY}'",),
        (f"SELECT id FROM nowhere WHERE x = {placeholder}", (CANARY,)),
    ]
    if driver == "asyncpg":
        connection = await module.connect(database=url.database, **given)
        for sql, *values in statements:
            with suppress(module.PostgresError):
                await connection.fetch(sql.replace("%s", "$1::text"), *(value for row in values for value in row))
        await connection.close()
        return
    if driver == "aiosqlite":
        connection = await module.connect(f"file:direct?mode=memory&key={CANARY}", uri=True)
    elif driver == "psycopg":
        connection = await module.AsyncConnection.connect(dbname=url.database, autocommit=True, **given)
    else:
        connection = await module.connect(db=url.database, **given)
    errors = () if driver == "aiosqlite" else (module.Error,)
    for statement in statements:
        cursor = connection.cursor()
        cursor = await cursor if hasattr(cursor, "__await__") else cursor
        with suppress(sqlite3.Error, *errors):
            await cursor.execute(*statement)
    await (connection.ensure_closed() if hasattr(connection, "ensure_closed") else connection.close())


class Captures:
    """
    Everything that leaves the process: a console, an OTLP receiver, and the logs of the agent and of OpenTelemetry.
    """

    def __init__(self, receiver: Receiver, recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "otel_async_sqla_agent")
        self._receiver, self._caplog, self._out = receiver, caplog, io.StringIO()
        endpoint = receiver.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
        for exporter in (ConsoleSpanExporter(out=self._out), OTLPSpanExporter(f"{endpoint}/v1/traces")):
            recording.provider.add_span_processor(SimpleSpanProcessor(exporter))
        exporters = ConsoleMetricExporter(out=self._out), OTLPMetricExporter(f"{endpoint}/v1/metrics")
        self.meter_provider = MeterProvider(
            [PeriodicExportingMetricReader(exporter, 3_600_000) for exporter in exporters], shutdown_on_exit=False
        )

    def read(self) -> dict[str, str]:
        self.meter_provider.shutdown()
        telemetry = self._receiver._handler.telemetry
        return {
            "console": self._out.getvalue(),
            "otlp": "".join(str(item.pbreq) for item in [*telemetry.trace_requests, *telemetry.metric_requests]),
            "log": "\n".join(
                self._caplog.handler.format(record)
                for record in self._caplog.records
                if record.name.startswith(("otel_async_sqla_agent", "opentelemetry"))  # drivers log values themselves
            ),
        }


def captured(
    driver: str, receiver: Receiver, recording: Recording, caplog: Any, monkeypatch: Any, opt_in: str, **options: Any
) -> dict[str, str]:
    """
    Run the scenario, and return what the captures have got.
    """
    url = secret_url(driver)
    captures = Captures(receiver, recording, caplog)
    for variable in ("DATABASE_URL", "PGPASSWORD", "MYSQL_PWD", "OTEL_RESOURCE_TOKEN"):
        monkeypatch.setenv(variable, CANARY)
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", opt_in)
    otel_async_sqla_agent.instrument(
        tracer_provider=recording.provider, meter_provider=captures.meter_provider, **options
    )
    run(scenario(url, CONNECT_ARGUMENTS[driver]))
    statements = len(recording.ended)
    run(direct(url))
    assert (statements < len(recording.ended)) == (options.get("mode") != "engine")
    recording.assert_all_ended()
    assert 5 < len([span for span in recording.ended if not span.status.is_unset])
    assert "pool timeout" in recording.names
    return captures.read()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("mode", "opt_in"),
    [
        pytest.param("auto", "", id="auto"),
        pytest.param("engine", "database/dup", id="engine"),
        pytest.param("driver", "database/dup", id="driver"),
        pytest.param("both", "database/dup", id="both"),
    ],
)
def test_no_value_leaves(
    driver: str, mode: str, opt_in: str, receiver: Receiver, recording: Recording, caplog: Any, monkeypatch: Any
) -> None:
    """
    By default the canary is nowhere, under old names or new ones.
    """
    captures = captured(driver, receiver, recording, caplog, monkeypatch, opt_in, mode=mode)
    for name, said in captures.items():
        assert said
        assert [] == [line for line in said.splitlines() if CANARY.lower() in line.lower()], name


def test_captures_work(receiver: Receiver, recording: Recording, caplog: Any, monkeypatch: Any) -> None:
    """
    A canary that is asked for is found in the console's output and by the receiver.
    """
    captures = captured("asyncpg", receiver, recording, caplog, monkeypatch, "database", query_text="raw")
    assert {"console", "otlp"} == {name for name, said in captures.items() if CANARY in said}
