from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from integration.databases import driver_url
from integration.direct import Way, databases, expected, go, lines
from integration.test_direct_asyncpg import closed, dsn, opened
from tests.conftest import run
from tests.recording import Recording

pytestmark = pytest.mark.usefixtures("postgresql")


async def committed(connection: Any) -> None:
    async with connection.transaction(isolation="serializable"):
        await connection.fetch("SELECT 1")
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                raise ZeroDivisionError
        async with connection.transaction():
            pass


async def failed_commit(connection: Any) -> None:
    async with connection.transaction():
        await connection.execute("INSERT INTO tea VALUES (1, ''), (1, '')")


async def by_hand(connection: Any) -> None:
    await connection.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
    await connection.execute("savepoint a")
    await connection.execute("ROLLBACK")


# Without `transaction` in SPANS only what fails is seen, and the statements.
TRANSACTIONS: dict[str, Way] = {
    "committed": (
        committed,
        ["BEGIN", "SELECT: SELECT ?", "SAVEPOINT", "ROLLBACK TO", "SAVEPOINT", "RELEASE SAVEPOINT", "COMMIT"],
    ),
    "failed commit": (
        failed_commit,
        ["BEGIN", "INSERT tea: INSERT INTO tea VALUES (?, ?), (?, ?)", "COMMIT ERROR 23505"],
    ),
    "by hand": (by_hand, ["BEGIN", "SAVEPOINT", "ROLLBACK"]),
}


@pytest.mark.parametrize("spans", ["statement", "statement,transaction"])
def test_transactions(spans: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    Transaction control appears once where SPANS asks for it; else only a COMMIT that fails does.
    """
    plain = go(TRANSACTIONS, opened, closed, Recording())
    agent(spans=spans)
    assert plain == go(TRANSACTIONS, opened, closed, recording)
    assert expected(TRANSACTIONS, transactions="transaction" in spans) == lines(recording)


def test_listener(agent: Callable[..., None], recording: Recording) -> None:
    """
    A callback that asyncpg runs in the context of the connect has spans of its own for its statements.
    """

    async def main() -> None:
        heard = asyncio.Event()

        async def listener(connection: Any, *_: Any) -> None:
            await other.fetchval("SELECT 2")
            heard.set()

        with recording.tracer.start_as_current_span("program"):
            connection, other = await asyncpg.connect(dsn()), await asyncpg.connect(dsn())
            await connection.add_listener("news", listener)
            await connection.execute("NOTIFY news")
            await heard.wait()
        await connection.close()
        await other.close()

    agent()
    run(main())
    assert {
        "program": ["connect", "connect", 'LISTEN: LISTEN "news"', "NOTIFY: NOTIFY news", "SELECT: SELECT ?"]
    } == lines(recording)


PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "names": lambda url: {"host": url.host, "port": url.port, "user": url.username, "database": url.database},
    "dsn": lambda url: {"dsn": dsn()},
    "hosts": lambda url: {"dsn": f"postgresql://{url.username}@{url.host}:1,{url.host}:{url.port}/{url.database}"},
    "list": lambda url: {**PLACES["names"](url), "host": [url.host], "port": [url.port]},
    "socket": lambda url: {**PLACES["names"](url), "host": socket_folder(url), "port": url.port},
}


def socket_folder(url: Any) -> str:
    if not Path(f"/var/run/postgresql/.s.PGSQL.{url.port}").exists():
        pytest.skip("the server has no socket here")
    return "/var/run/postgresql"


@pytest.mark.parametrize("place", PLACES)
def test_database(place: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    The spans of the connect and of a statement name the same database, however it was given.
    """
    url = driver_url("asyncpg")
    if not url.host:
        pytest.skip("the embedded server has a socket alone")
    url = url.set(port=url.port or 5432)
    options = PLACES[place](url)

    async def main() -> None:
        connection = await asyncpg.connect(**options)
        await connection.fetch("SELECT 1")
        await connection.close()

    agent()
    run(main())
    address = f"/var/run/postgresql/.s.PGSQL.{url.port}" if place == "socket" else url.host
    port = url.port if place != "socket" and url.port != 5432 else None
    assert ["connect", "SELECT"] == recording.names
    assert {("postgresql", url.database, address, port)} == databases(recording)


def test_cancelled_before_it_began(agent: Callable[..., None], recording: Recording) -> None:
    """
    A prepared statement's call that is cancelled before it has begun leaves no coroutine that Python complains of.
    """

    async def main() -> None:
        connection = await asyncpg.connect(dsn())
        statement = await connection.prepare("SELECT 1")
        task = asyncio.ensure_future(statement.fetch())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.close()

    agent(spans="statement")
    run(main())
    assert [] == recording.names
