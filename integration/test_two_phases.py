"""
Two-phase commit, with a phase that is really prepared.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from integration.databases import two_phase_url
from integration.direct import Way, expected, go, lines
from tests.conftest import run
from tests.recording import Recording

MODES = ["auto", "engine", "driver", "both"]
SPANS = ["statement", "statement,transaction"]


async def begin(connection: AsyncConnection) -> Any:
    transaction = await connection.run_sync(lambda sync: sync.begin_twophase(uuid.uuid4().hex))
    await connection.execute(text("SELECT 1"))
    return transaction


async def committed(connection: AsyncConnection) -> None:
    transaction = await begin(connection)
    await connection.run_sync(lambda _: transaction.prepare())
    await connection.run_sync(lambda _: transaction.commit())


async def rolled_back(connection: AsyncConnection) -> None:
    transaction = await begin(connection)
    await connection.run_sync(lambda _: transaction.prepare())
    await connection.run_sync(lambda _: transaction.rollback())


async def committed_at_once(connection: AsyncConnection) -> None:
    transaction = await begin(connection)
    await connection.run_sync(lambda _: transaction.commit())


async def left(connection: AsyncConnection) -> None:
    transaction = await begin(connection)
    await connection.run_sync(lambda _: transaction.rollback())


async def failed(connection: AsyncConnection) -> None:
    with pytest.raises(Exception, match=r"not exist|XAER"):
        await connection.run_sync(lambda sync: sync.commit_prepared("nowhere", recover=True))


ENDS: dict[str, tuple[Callable[[AsyncConnection], Awaitable[None]], list[str]]] = {
    "committed": (committed, ["PREPARE TRANSACTION", "COMMIT PREPARED"]),
    "rolled back": (rolled_back, ["PREPARE TRANSACTION", "ROLLBACK PREPARED"]),
    "committed at once": (committed_at_once, ["COMMIT"]),
    "left": (left, ["ROLLBACK"]),
    "failed": (failed, []),
}


def tree(driver: str, mode: str, spans: str) -> list[Any]:
    """
    Return what the engine gives: transaction control appears once, and BEGIN where it is sent.
    """
    wanted, by_driver = "transaction" in spans, mode in ("driver", "both")
    begins = [["BEGIN"]] if wanted and (driver != "asyncpg" or by_driver) else []
    first = [["SELECT"]]
    # asyncpg's adapter begins a transaction of its own before the first statement, inside of the engine's call.
    if mode == "both":
        first = [["SELECT", *(begins if driver == "asyncpg" else []), ["SELECT"]]]
        begins = [] if driver == "asyncpg" else begins
    code = "1400" if "my" in driver else "42704"
    ends = {name: [[span] for span in ends if wanted] for name, (_, ends) in ENDS.items()}
    found: list[Any] = [[f"{name} INTERNAL", *begins, *first, *end] for name, end in ends.items() if name != "failed"]
    return [*found, ["failed INTERNAL", [f"COMMIT PREPARED ERROR error.type='{code}'"]]]


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy", "asyncpg", "psycopg"])
def test_engine(driver: str, mode: str, spans: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    Each of an engine's calls gives one span where SPANS asks for it, by its true name; else only what fails does.
    """

    async def main(url: URL) -> list[Any]:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            pass
        recording.clear()
        found = []
        for name, (way, _) in ENDS.items():
            async with engine.connect() as connection:
                with recording.tracer.start_as_current_span(name):
                    await way(connection)
                # Here, because what comes back to the pool is rolled back there, which some drivers send.
                found += recording.tree("error.type")
            recording.clear()
        await engine.dispose()
        return found

    url = two_phase_url(driver)
    agent(mode=mode, spans=spans)
    assert tree(driver, mode, spans) == run(main(url))


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_reconnects(
    driver: str, agent: Callable[..., None], recording: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Where SQLAlchemy has to connect again first, it does that as often as without the agent, and what then fails is the
    application's.
    """

    async def main(url: URL) -> list[str]:
        seen = []

        def fail(*_: object) -> None:
            seen.append("connect")
            raise OSError

        engine = create_async_engine(url)
        async with engine.connect() as connection:
            await connection.invalidate()
            event.listen(engine.sync_engine, "do_connect", fail)
            try:
                await begin(connection)
            except (OSError, PendingRollbackError) as error:  # the latter on SQLAlchemy 1.4
                seen.append(type(error).__name__)
        await engine.dispose()
        return seen

    url = two_phase_url(driver)
    plain = run(main(url))
    agent(spans="statement,transaction")
    assert plain == run(main(url))
    assert plain
    assert [] == [record.message for record in caplog.records]


async def opened() -> Any:
    conninfo = two_phase_url("psycopg").set(drivername="postgresql").render_as_string(hide_password=False)
    return await psycopg.AsyncConnection.connect(conninfo)


async def closed(connection: Any) -> None:
    await connection.close()


def directly(action: str, *, prepared: bool = True) -> Callable[[Any], Any]:
    async def way(connection: Any) -> Any:
        await connection.tpc_begin(connection.xid(1, "tea", "'; milk"))
        await connection.execute("SELECT 1")
        if prepared:
            await connection.tpc_prepare()
        return await getattr(connection, action)()

    return way


async def nowhere(connection: Any) -> None:
    await connection.tpc_commit("nowhere")


WAYS: dict[str, Way] = {
    "committed": (
        directly("tpc_commit"),
        ["BEGIN", "SELECT: SELECT ?", "PREPARE TRANSACTION", "COMMIT PREPARED"],
    ),
    "rolled back": (
        directly("tpc_rollback"),
        ["BEGIN", "SELECT: SELECT ?", "PREPARE TRANSACTION", "ROLLBACK PREPARED"],
    ),
    "committed at once": (directly("tpc_commit", prepared=False), ["BEGIN", "SELECT: SELECT ?", "COMMIT"]),
    "left": (directly("tpc_rollback", prepared=False), ["BEGIN", "SELECT: SELECT ?", "ROLLBACK"]),
    "failed": (nowhere, ["COMMIT PREPARED ERROR 42704"]),
}


@pytest.mark.parametrize("spans", SPANS)
def test_direct(spans: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    psycopg's own calls give one span each where SPANS asks for it; else only what fails does.
    """
    two_phase_url("psycopg")
    plain = go(WAYS, opened, closed, Recording())
    agent(spans=spans)
    assert plain == go(WAYS, opened, closed, recording)
    assert expected(WAYS, transactions="transaction" in spans) == lines(recording)
