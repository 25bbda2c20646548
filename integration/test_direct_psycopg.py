from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import sql

from integration.databases import driver_url, server_address
from integration.direct import Way, databases, expected, go, lines
from tests.conftest import run
from tests.recording import Recording
from tests.templates import template

pytestmark = pytest.mark.usefixtures("postgresql")


def conninfo() -> str:
    return driver_url("psycopg").set(drivername="postgresql").render_as_string(hide_password=False)


async def opened() -> Any:
    connection = await psycopg.AsyncConnection.connect(conninfo(), autocommit=True)
    await connection.execute("CREATE TEMP TABLE tea (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, name text)")
    await connection.set_autocommit(False)
    return connection


async def closed(connection: Any) -> None:
    await connection.close()


def of(make: Callable[[Any], Any], method: str, *args: Any, fetch: bool = True, **options: Any) -> Callable[[Any], Any]:
    """
    Return how to use one method of a cursor, and fetch what it has found.
    """

    async def way(connection: Any) -> Any:
        cursor = make(connection)
        async with cursor:
            await getattr(cursor, method)(*args, **options)
            return await cursor.fetchall() if fetch else cursor.rowcount

    return way


def cursor(connection: Any) -> Any:
    return connection.cursor()


def server_cursor(connection: Any) -> Any:
    return connection.cursor("named")


class Own(psycopg.AsyncCursor[Any]):
    """
    A cursor of the application's own.
    """

    async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        return await super().execute(query, *args, **options)


async def streamed(connection: Any) -> list[Any]:
    """
    Execute a statement on another connection between the rows.
    """
    found = []
    async with await psycopg.AsyncConnection.connect(conninfo(), autocommit=True) as other:
        async for row in connection.cursor().stream("SELECT generate_series(1, %s)", [3]):
            if row == (2,):
                found += await (await other.execute("SELECT 'between'")).fetchall()
            found.append(row)
    return found


async def left_stream(connection: Any) -> Any:
    rows = connection.cursor().stream("SELECT generate_series(1, 3)")
    first = await anext(rows)
    await rows.aclose()
    return first


async def copied_in(connection: Any) -> int:
    """
    Execute a statement on another connection inside of the block.
    """
    cur = connection.cursor()
    connect = psycopg.AsyncConnection.connect
    async with await connect(conninfo()) as other, cur.copy(statement="COPY tea FROM STDIN") as copy:
        await copy.write_row((7, "mint"))
        await other.execute("SELECT 'inside'")
    return int(cur.rowcount)


async def copied_out(connection: Any) -> list[Any]:
    async with connection.cursor().copy("COPY (SELECT name FROM tea WHERE id = %s) TO STDOUT", (7,)) as copy:
        return [row async for row in copy.rows()]


async def template_copied_out(connection: Any) -> list[Any]:
    statement = template("COPY (SELECT ", ("name", "i"), " FROM tea WHERE id = ", (1, ""), ") TO STDOUT")
    async with connection.cursor().copy(statement) as copy:
        return [row async for row in copy.rows()]


async def broken_copy(connection: Any) -> None:
    async with connection.transaction(), connection.cursor().copy("COPY tea FROM STDIN") as copy:
        await copy.write_row((8, "lime"))
        raise ZeroDivisionError


async def pipelined(connection: Any) -> list[Any]:
    async with connection.pipeline():
        first = await connection.execute("SELECT 1")
        second = await connection.execute("SELECT %s::int", (2,))
        return [await first.fetchone(), await second.fetchone()]


async def from_server(connection: Any) -> list[Any]:
    async with connection.cursor("named") as cur:
        await cur.execute("SELECT generate_series(1, %s)", (250,))
        await cur.scroll(10)
        return [await cur.fetchone(), len(await cur.fetchmany(20)), len([row async for row in cur])]


async def pooled(connection: Any) -> list[Any]:
    found = []
    async with psycopg_pool.AsyncConnectionPool(
        conninfo(), min_size=1, max_size=1, open=False, check=psycopg_pool.AsyncConnectionPool.check_connection
    ) as pool:
        await pool.wait()
        for number in (1, 2):
            async with pool.connection() as member:
                found.append(await (await member.execute("SELECT %s::int", (number,))).fetchone())
    return found


async def wrong_arguments(connection: Any) -> list[str]:
    """
    Return what wrong arguments raise, more often than the layer may fail.
    """
    raised = []
    for args in ((), (None,), (5,), (object(),), (sql.SQL("SELECT {}").format(object()),), ("SELECT %s", 5)):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever the driver raises: the type is compared
            await connection.cursor().execute(*args)
        raised.append(type(caught.value).__name__)
    for wrong in ("no conninfo", "port=x"):
        with pytest.raises(psycopg.Error) as caught:
            await psycopg.AsyncConnection.connect(wrong)
        raised.append(type(caught.value).__name__)
    await connection.rollback()
    return raised


def failing(way: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def rolled_back(connection: Any) -> Any:
        try:
            return await way(connection)
        finally:
            await connection.rollback()

    return rolled_back


WAYS: dict[str, Way] = {
    "connection": (
        lambda c: c.execute("INSERT INTO tea VALUES (1, 'green')"),
        ["INSERT tea: INSERT INTO tea VALUES (?, ?)"],
    ),
    "execute": (
        of(cursor, "execute", "SELECT * FROM tea WHERE id = %s", (1,)),
        ["SELECT tea: SELECT * FROM tea WHERE id = %s"],
    ),
    "execute by name": (
        of(cursor, "execute", query="SELECT * FROM tea WHERE id = %(id)s", params={"id": 1}),
        ["SELECT tea: SELECT * FROM tea WHERE id = %(id)s"],
    ),
    "execute bytes": (of(cursor, "execute", b"SELECT 'green'"), ["SELECT: SELECT ?"]),
    "execute composed": (
        of(cursor, "execute", sql.SQL("SELECT {} FROM tea").format(sql.Literal("green"))),
        ["SELECT tea: SELECT ? FROM tea"],
    ),
    "execute a template": (
        of(
            cursor,
            "execute",
            template("SELECT ", ("x", "l"), ", ", ("name", "i"), " FROM tea ", (template("WHERE id = ", (1, "")), "q")),
        ),
        ['SELECT tea: SELECT ?, "name" FROM tea WHERE id = ?'],
    ),
    "failed template": (
        failing(of(cursor, "execute", template("SELECT ", ("x", "q")))),
        ["SELECT ERROR psycopg.ProgrammingError: SELECT ?"],
    ),
    "copy a template": (
        template_copied_out,
        ['COPY SELECT tea: COPY (SELECT "name" FROM tea WHERE id = ?) TO STDOUT'],
    ),
    "execute nothing": (of(cursor, "execute", "", fetch=False), []),
    "executemany": (
        of(cursor, "executemany", "INSERT INTO tea VALUES (%s, %s)", [(2, "black"), (3, "red")], fetch=False),
        ["BATCH INSERT tea: INSERT INTO tea VALUES (%s, %s) x2"],
    ),
    "executemany returning": (
        of(cursor, "executemany", "DELETE FROM tea WHERE id = %s RETURNING id", [(2,), (3,)], returning=True),
        ["BATCH DELETE tea: DELETE FROM tea WHERE id = %s RETURNING id x2"],
    ),
    "stream": (
        streamed,
        ["connect", "SELECT: SELECT generate_series(1, %s)", "SELECT: SELECT ?"],
    ),
    "stream that is left": (left_stream, ["SELECT: SELECT generate_series(?, ?)"]),
    "copy in": (copied_in, ["connect", "COPY tea: COPY tea FROM STDIN", "SELECT: SELECT ?"]),
    "copy out": (copied_out, ["COPY SELECT tea: COPY (SELECT name FROM tea WHERE id = %s) TO STDOUT"]),
    "client cursor": (
        of(psycopg.AsyncClientCursor, "execute", "SELECT * FROM tea WHERE id = %s", (1,)),
        ["SELECT tea: SELECT * FROM tea WHERE id = %s"],
    ),
    "raw cursor": (
        of(psycopg.AsyncRawCursor, "execute", "SELECT * FROM tea WHERE id = $1", (1,)),
        ["SELECT tea: SELECT * FROM tea WHERE id = $1"],
    ),
    "server cursor": (from_server, ["SELECT: SELECT generate_series(1, %s)"]),
    "own cursor": (of(Own, "execute", "SELECT 1"), ["SELECT: SELECT ?"]),
    "pipeline": (pipelined, ["SELECT: SELECT ?", "SELECT: SELECT %s::int"]),
    "pool": (pooled, ["connect", "SELECT: SELECT %s::int", "SELECT: SELECT %s::int"]),
    "commit": (lambda c: c.commit(), []),
    "failed execute": (
        failing(of(cursor, "execute", "SELECT * FROM coffee WHERE id = %s", (1,))),
        ["SELECT coffee ERROR 42P01: SELECT * FROM coffee WHERE id = %s"],
    ),
    "failed executemany": (
        failing(of(cursor, "executemany", "SELECT 1 / %s", [(1,), (0,)])),
        ["BATCH SELECT ERROR 22012: SELECT 1 / %s x2"],
    ),
    "failed server cursor": (
        failing(of(server_cursor, "execute", "SELECT * FROM coffee")),
        ["SELECT coffee ERROR 42P01: SELECT * FROM coffee"],
    ),
    "failed copy": (broken_copy, ["COPY tea ERROR ZeroDivisionError: COPY tea FROM STDIN"]),
    "wrong arguments": (
        wrong_arguments,
        [
            "SELECT ERROR TypeError: SELECT %s",
            "connect ERROR psycopg.ProgrammingError",
            "connect ERROR psycopg.OperationalError",
        ],
    ),
}


def test_every_way(agent: Callable[..., None], recording: Recording) -> None:
    """
    Each way to execute a statement gives one span, and what it gives or raises is the same without the agent.
    """
    plain = go(WAYS, opened, closed, Recording())
    agent()
    assert plain == go(WAYS, opened, closed, recording)
    assert expected(WAYS) == lines(recording)


async def committed(connection: Any) -> None:
    async with connection.transaction():
        await connection.execute("SELECT 1")
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                raise ZeroDivisionError
        async with connection.transaction("named"):
            pass


async def implicit(connection: Any) -> None:
    await connection.execute("SELECT 1")
    await connection.rollback()
    await connection.commit()


async def failed_commit(connection: Any) -> None:
    await connection.execute("INSERT INTO tea VALUES (1, ''), (1, '')")
    await connection.commit()


async def two_phases(connection: Any) -> None:
    await connection.tpc_begin("one")
    await connection.execute("SELECT 1")
    await connection.tpc_commit()


TRANSACTIONS: dict[str, Way] = {
    "committed": (
        committed,
        ["BEGIN", "SELECT: SELECT ?", "SAVEPOINT", "ROLLBACK TO", "RELEASE", "SAVEPOINT", "RELEASE", "COMMIT"],
    ),
    "implicit": (implicit, ["SELECT: SELECT ?", "> BEGIN", "ROLLBACK"]),
    "failed commit": (
        failed_commit,
        ["INSERT tea: INSERT INTO tea VALUES (?, ?), (?, ?)", "> BEGIN", "COMMIT ERROR 23505"],
    ),
    "two phases": (two_phases, ["BEGIN", "SELECT: SELECT ?", "COMMIT"]),
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


def test_sync_side(agent: Callable[..., None], recording: Recording) -> None:
    """
    Nothing of psycopg's sync side is replaced.
    """
    classes = [base for side in (psycopg.Connection, psycopg.Cursor, psycopg.ServerCursor) for base in side.__mro__]
    before = [dict(vars(cls)) for cls in classes]

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo()) as connection:
            await connection.execute("SELECT 1")
            assert before == [dict(vars(cls)) for cls in classes]

    agent()
    run(main())
    url = driver_url("psycopg")
    assert (["connect", "SELECT"], {("postgresql", url.database, server_address(url), None)}) == (
        recording.names,
        databases(recording),
    )


def test_closed_before(agent: Callable[..., None], recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """
    A connection that was closed before the agent was active is no failure of the agent's.
    """

    async def main() -> None:
        connection = await psycopg.AsyncConnection.connect(conninfo())
        cur = connection.cursor()
        await connection.close()
        agent()
        for _ in range(6):
            with pytest.raises(psycopg.OperationalError):
                await cur.execute("SELECT 1")

    run(main())
    assert (["SELECT"] * 6, []) == (recording.names, caplog.records)
