from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiomysql
import aiosqlite
import asyncmy
import asyncpg
import psycopg
import pytest
from sqlalchemy import Column, Integer, String, bindparam, func, insert, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import declarative_base
from sqlalchemy.pool import AsyncAdaptedQueuePool

from integration.databases import DRIVERS, driver_url
from tests.conftest import run
from tests.recording import Recording

Base: Any = declarative_base()


class Tea(Base):  # type: ignore[misc]
    __tablename__ = "tea"
    id = Column(Integer, primary_key=True, autoincrement=False)
    name = Column(String(40))


RECURSIVE = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT {} FROM n"
SLEEP = {
    "mysql": "SELECT SLEEP(3)",
    "postgresql": "SELECT pg_sleep(3)",
    "sqlite": RECURSIVE.format(1_500_000, "count(*)"),
}


async def open_connection(driver: str, url: URL) -> Any:
    """
    Open a connection of the driver's own.
    """
    if driver == "aiosqlite":
        return await aiosqlite.connect(str(url.database))
    if driver in ("asyncpg", "psycopg"):
        connect: Any = {"asyncpg": asyncpg.connect, "psycopg": psycopg.AsyncConnection.connect}[driver]
        return await connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    module: Any = {"aiomysql": aiomysql, "asyncmy": asyncmy}[driver]
    return await module.connect(host=url.host, port=url.port or 3306, user=url.username, db=url.database)


async def execute_directly(connection: Any, statement: str) -> None:
    """
    Execute a statement as one does with the driver alone.
    """
    if hasattr(connection, "fetch"):
        await connection.fetch(statement)
        return
    cursor = connection.cursor()
    cursor = await cursor if inspect.isawaitable(cursor) else cursor
    await cursor.execute(statement)
    await cursor.fetchall()
    await cursor.close()


async def cancel(engine: AsyncEngine) -> None:
    """
    Cancel a statement while the server executes it.
    """
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        statement = text(SLEEP[engine.dialect.name.replace("mariadb", "mysql")])
        task = asyncio.ensure_future(connection.execute(statement))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def scenario(driver: str, url: URL, recording: Recording) -> None:
    """
    Use an engine, another one, and the driver itself: each step in a span of its own.
    """
    step = recording.tracer.start_as_current_span
    # SQLAlchemy 1.4 would connect to a file of SQLite for each checkout.
    engine, other = (create_async_engine(url, poolclass=AsyncAdaptedQueuePool) for _ in range(2))
    with step("connect"):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    with step("insert"):
        async with AsyncSession(engine) as session:
            session.add_all([Tea(id=number, name="green") for number in range(500)])
            await session.commit()
    with step("select"):
        async with AsyncSession(engine) as session:
            query = select(Tea).where(Tea.id >= bindparam("least"))
            assert 500 == len((await session.execute(query, {"least": 0})).all())
    async with engine.begin() as connection:
        with step("stream"):
            rows = await connection.stream(text(RECURSIVE.format(":end", "i")), {"end": 1000})
            assert 1000 == len([row async for row in rows])
        with step("many"):
            values = [{"name": "black", "id": 1}, {"name": "white", "id": 2}]
            await connection.execute(text("UPDATE tea SET name = :name WHERE id = :id"), values)
        with step("savepoint"):
            async with connection.begin_nested():
                assert 500 == (await connection.execute(select(func.count()).select_from(Tea))).scalar_one()
        with step("raw"):
            raw: Any = await connection.get_raw_connection()
            await execute_directly(raw.driver_connection, "SELECT 1")
    with step("failure"), pytest.raises(DBAPIError):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT * FROM coffee WHERE id = :id"), {"id": 1})
    with step("cancelled"):
        await cancel(engine)
    with step("other"):
        async with other.begin() as connection:
            await connection.execute(insert(Tea), {"id": 501, "name": "x"})
    with step("direct"):
        raw = await open_connection(driver, url)
        await execute_directly(raw, "SELECT 1")
    closing = raw.close()
    if inspect.isawaitable(closing):
        await closing
    await engine.dispose()
    await other.dispose()


BATCH = "db.operation.batch.size"
NUMBERS = "SELECT SELECT n SELECT n"
# What each step gives in the engine's layer and in the driver's.
STEPS: dict[str, tuple[list[str], list[str]]] = {
    "connect": (["connect", "SELECT"], ["connect", "SELECT"]),
    "insert": ([f"BATCH INSERT tea {BATCH}=500"], [f"BATCH INSERT tea {BATCH}=500"]),
    "select": (["SELECT tea"], ["SELECT tea"]),
    "stream": ([NUMBERS], [NUMBERS]),
    "many": ([f"BATCH UPDATE tea {BATCH}=2"], [f"BATCH UPDATE tea {BATCH}=2"]),
    "savepoint": (["SELECT tea"], ["SELECT tea"]),
    "raw": ([], ["SELECT"]),
    "failure": (["SELECT coffee ERROR"], ["SELECT coffee ERROR"]),
    "cancelled": (["SELECT", "SELECT ERROR"], ["SELECT", "SELECT ERROR"]),
    "other": (["connect", "INSERT tea"], ["connect", "INSERT tea"]),
    "direct": ([], ["connect", "SELECT"]),
}


def database(driver: str, folder: Path) -> URL:
    """
    Return the driver's database; a connection that is cancelled takes one in memory with it.
    """
    url = driver_url(driver)
    return url.set(database=f"{folder}/test.db") if driver == "aiosqlite" else url


def steps(recording: Recording) -> list[Any]:
    """
    Return the tree of the scenario, without what prepares it.
    """
    return [part for part in recording.tree(BATCH) if part[0].endswith("INTERNAL")]


def expected(driver: str, mode: str) -> list[Any]:
    """
    Return the tree of the scenario: each step with what it gives.
    """
    tree = []
    steps = dict(STEPS)
    if driver == "aiosqlite":  # has no function to sleep
        steps["cancelled"] = (["SELECT", f"{NUMBERS} ERROR"],) * 2
    for step, (engine_lines, driver_lines) in steps.items():
        lines: list[Any]
        if mode == "both" and engine_lines:
            lines = [[line] if line == "connect" else [line, [line]] for line in engine_lines]
        elif mode == "driver" or (not engine_lines and mode != "engine"):
            lines = [[line] for line in driver_lines]
        else:
            lines = [[line] for line in engine_lines]
        tree.append([f"{step} INTERNAL", *lines])
    return tree


@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize("driver", list(DRIVERS))
def test_scenario(driver: str, mode: str, recording: Recording, agent: Callable[..., None], tmp_path: Path) -> None:
    """
    Each statement gives one span where its mode says, or one nested pair, and all of them under the right parents.
    """
    agent(mode=mode)
    run(scenario(driver, database(driver, tmp_path), recording))
    assert expected(driver, mode) == steps(recording)


@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize("driver", list(DRIVERS))
def test_first_statement_after_a_checkout(
    driver: str, mode: str, recording: Recording, agent: Callable[..., None], tmp_path: Path
) -> None:
    """
    The first statement after a checkout, and no other, says where the connection came from, in the outermost layer.
    """

    async def statements(url: URL) -> None:
        engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool)
        for _ in range(2):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                await connection.execute(text("SELECT 1"))
        await engine.dispose()

    url = database(driver, tmp_path)
    agent(mode=mode, spans="statement")
    run(statements(url))
    key = "async_sqla.pool.source"
    lines = [f"SELECT {key}='new'", "SELECT", f"SELECT {key}='idle'", "SELECT"]
    assert [[line, ["SELECT"]] if mode == "both" else [line] for line in lines] == recording.tree(key)


# Where the driver sends BEGIN: before the first statement, inside of its call, or the server begins by itself.
BEGINS = {"asyncpg": "before", "psycopg": "inside"}


def first_statement(driver: str, mode: str) -> list[Any]:
    """
    Return what the first statement of a transaction gives.
    """
    begins = BEGINS.get(driver) if mode in ("driver", "both") else None
    statement = ["SELECT", ["BEGIN"]] if begins == "inside" else ["SELECT"]
    lines = [["BEGIN"], statement] if begins == "before" else [statement]
    return [["SELECT", *lines]] if mode == "both" else lines


@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize("driver", list(DRIVERS))
def test_transaction_spans(
    driver: str, mode: str, recording: Recording, agent: Callable[..., None], tmp_path: Path
) -> None:
    """
    Asked for, transaction control gives one span each, the engine's in every mode; BEGIN is the driver's.
    """

    async def transaction(url: URL) -> list[Any]:
        engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool)
        async with engine.connect():
            pass
        recording.clear()
        async with engine.connect() as connection:
            async with connection.begin():
                await connection.execute(text("SELECT 1"))
                async with connection.begin_nested():
                    await connection.execute(text("SELECT 2"))
            # Here, because what comes back to the pool is rolled back there, which some drivers send.
            tree = recording.tree()
        await engine.dispose()
        return tree

    url = database(driver, tmp_path)
    agent(mode=mode, spans="statement,transaction")
    tree = run(transaction(url))
    statement = ["SELECT", ["SELECT"]] if mode == "both" else ["SELECT"]
    commit = [] if driver == "aiosqlite" else [["COMMIT"]]  # SQLite has begun nothing
    assert [
        *first_statement(driver, mode),
        ["SAVEPOINT"],
        statement,
        ["RELEASE SAVEPOINT"],
        *commit,
    ] == tree


@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_failing_commit(driver: str, mode: str, recording: Recording, agent: Callable[..., None]) -> None:
    """
    A COMMIT that fails gives one span in every mode, also where transaction control gives none.
    """

    async def commit(url: URL) -> None:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            await connection.execute(text("CREATE TEMPORARY TABLE a (id INTEGER PRIMARY KEY)"))
            await connection.execute(
                text("CREATE TEMPORARY TABLE b (id INTEGER REFERENCES a (id) DEFERRABLE INITIALLY DEFERRED)")
            )
            await connection.execute(text("INSERT INTO b VALUES (1)"))
            recording.clear()
            with pytest.raises(DBAPIError):
                await connection.get_transaction().commit()  # type: ignore[union-attr]
        await engine.dispose()

    url = driver_url(driver)
    agent(mode=mode, spans="statement")
    run(commit(url))
    assert [["COMMIT ERROR db.response.status_code='23503'"]] == recording.tree("db.response.status_code")


def skipping_engine(url: URL) -> AsyncEngine:
    return create_async_engine(url, poolclass=AsyncAdaptedQueuePool, execution_options={"otel_skip": True})


def skipping_copy(url: URL) -> AsyncEngine:
    return create_async_engine(url, poolclass=AsyncAdaptedQueuePool).execution_options(otel_skip=True)


def skipping_connection(url: URL) -> AsyncEngine:
    return create_async_engine(url, poolclass=AsyncAdaptedQueuePool)


@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize("make", [skipping_engine, skipping_copy, skipping_connection])
@pytest.mark.parametrize("driver", list(DRIVERS))
def test_skipped_transactions(
    driver: str,
    make: Callable[[URL], AsyncEngine],
    mode: str,
    recording: Recording,
    agent: Callable[..., None],
    tmp_path: Path,
) -> None:
    """
    `otel_skip` of an engine or a connection leaves its transaction control out, whatever has become of it; a connection
    that is not asked to skip has all of it, on the same pool.
    """

    async def transactions(connection: Any) -> None:
        async with connection.begin():
            await connection.execute(text("SELECT 1"))
            async with connection.begin_nested():
                await connection.execute(text("SELECT 2"))
            nested = await connection.begin_nested()
            await connection.execute(text("SELECT 3"))
            await nested.rollback()
        async with connection.begin() as transaction:
            await connection.execute(text("SELECT 4"))
            await transaction.rollback()

    async def main(url: URL) -> None:
        engine, plain = make(url), create_async_engine(url, poolclass=AsyncAdaptedQueuePool)
        async with engine.connect() as connection:
            if make is skipping_connection:
                recording.clear()
                await connection.execution_options(otel_skip=True)
            await transactions(connection)
        assert [] == recording.started
        trees = []
        for each in (engine, plain):
            async with each.connect() as connection:
                await connection.execution_options(otel_skip=True)
                await connection.execution_options(otel_skip=False)
                recording.clear()
                await transactions(connection)
                trees.append(recording.tree())
            await each.dispose()
        assert trees[0] == trees[1]
        names = ["SELECT", "SAVEPOINT", "RELEASE SAVEPOINT", "ROLLBACK TO SAVEPOINT"]
        ends = ["COMMIT"] if driver == "aiosqlite" else ["COMMIT", "ROLLBACK"]  # SQLite began nothing
        assert {*names, *ends} == {line for line, *_ in trees[0]} - {"BEGIN"}

    url = database(driver, tmp_path)
    agent(mode=mode, spans="statement,connect,transaction")
    run(main(url))
