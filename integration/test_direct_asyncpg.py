from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from integration.databases import driver_url, server_address
from integration.direct import Way, databases, expected, go, lines
from tests.recording import Recording

pytestmark = pytest.mark.usefixtures("postgresql")


def dsn(**other: str) -> str:
    return driver_url("asyncpg").set(drivername="postgresql", **other).render_as_string(hide_password=False)


async def opened(**options: Any) -> Any:
    connection = await asyncpg.connect(dsn(), **options)
    await connection.execute(
        """
        CREATE TEMP TABLE tea (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, name text);
        CREATE TEMP TABLE "Tea & Co" (id int);
        """
    )
    return connection


async def closed(connection: Any) -> None:
    await connection.close()


class Row(asyncpg.Record):  # type: ignore[misc]
    """
    A record of the application's own.
    """


class Own(asyncpg.Connection):  # type: ignore[misc]
    """
    A connection of the application's own.
    """

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        return len(await super().fetch(query, *args, **options))


async def copied(connection: Any, method: str, *args: Any) -> tuple[str, bytes]:
    output = io.BytesIO()
    return await getattr(connection, method)(*args, output=output), output.getvalue()


def prepared(method: str, query: str, *args: Any) -> Callable[[Any], Any]:
    async def way(connection: Any) -> Any:
        return await getattr(await connection.prepare(query), method)(*args)

    return way


async def explained(connection: Any) -> int:
    return len(await (await connection.prepare("SELECT name FROM tea")).explain(analyze=True))


async def awaited_cursor(connection: Any) -> list[Any]:
    async with connection.transaction():
        cursor = await connection.cursor("SELECT name FROM tea WHERE id < $1 ORDER BY id", 3)
        return [await cursor.fetchrow(), await cursor.forward(1), await cursor.fetch(5)]


async def iterated_cursor(connection: Any) -> list[Any]:
    async with connection.transaction():
        return [row async for row in connection.cursor("SELECT generate_series(1, 120)", prefetch=50)]


async def prepared_cursor(connection: Any) -> list[Any]:
    async with connection.transaction(), connection.transaction():
        statement = await connection.prepare("SELECT name FROM tea WHERE id = $1")
        return [[row async for row in statement.cursor(1)], await (await statement.cursor(2)).fetch(1)]


async def cached(connection: Any) -> list[Any]:
    return [await connection.fetchval("SELECT $1::int", number) for number in (1, 2)]


async def released(connection: Any) -> list[str]:
    """
    Return what a statement and a cursor of a connection that has gone back to its pool raise, before any await.
    """
    raised = []
    async with asyncpg.create_pool(dsn(), min_size=1, max_size=1) as pool:
        async with pool.acquire() as member:
            statement = await member.prepare("SELECT 1")
            cursor = member.cursor("SELECT 1")
        for call in (statement.fetch, statement.fetchval, lambda: statement.executemany([]), cursor.__aiter__):
            with pytest.raises(asyncpg.InterfaceError) as caught:
                call()
            raised.append(str(caught.value))
    return raised


async def pool(connection: Any) -> list[Any]:
    async with asyncpg.create_pool(dsn(), min_size=1, max_size=2, connection_class=Own) as members:
        async with members.acquire() as first, members.acquire() as second:
            results = [await first.fetch("SELECT 'first'"), await second.fetchval("SELECT 'second'")]
        results += [await members.fetch("SELECT 3"), await members.execute("SELECT 4")]
        await members.executemany("SELECT $1::int", [(5,), (6,)])
    return results


async def codec(connection: Any) -> Any:
    await connection.set_type_codec("json", encoder=repr, decoder=len, schema="pg_catalog")
    return await connection.fetchval("SELECT '{}'::json")


async def wrong_arguments(connection: Any) -> list[str]:
    """
    Return what wrong arguments raise, more often than the layer may fail.
    """
    raised = []
    for args in ((), (None,), (5,), (b"SELECT 1",), (object(),), ([],), ("SELECT $1::int", "one")):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever the driver raises: the type is compared
            await connection.fetch(*args)
        raised.append(type(caught.value).__name__)
    return raised


async def closed_before(connection: Any) -> None:
    own = await asyncpg.connect(dsn())
    await own.close()
    await own.fetch("SELECT 1")


WAYS: dict[str, Way] = {
    "execute": (
        lambda c: c.execute("INSERT INTO tea VALUES (1, 'green')"),
        ["INSERT tea: INSERT INTO tea VALUES (?, ?)"],
    ),
    "execute with arguments": (
        lambda c: c.execute("INSERT INTO tea VALUES ($1, $2)", 2, "black"),
        ["INSERT tea: INSERT INTO tea VALUES ($1, $2)"],
    ),
    "execute two": (
        lambda c: c.execute("UPDATE tea SET name = 'x' WHERE id = 9; DELETE FROM tea WHERE id = 9"),
        ["UPDATE tea DELETE tea: UPDATE tea SET name = ? WHERE id = ?; DELETE FROM tea WHERE id = ?"],
    ),
    "execute nothing": (lambda c: c.execute("; "), []),
    "executemany": (
        lambda c: c.executemany("INSERT INTO tea VALUES ($1, $2)", [(3, "white"), (4, "red")]),
        ["BATCH INSERT tea: INSERT INTO tea VALUES ($1, $2) x2"],
    ),
    "executemany by name": (
        lambda c: c.executemany(command="UPDATE tea SET id = $1 WHERE id = $1", args=[(3,)]),
        ["UPDATE tea: UPDATE tea SET id = $1 WHERE id = $1"],
    ),
    "executemany of an iterator": (
        lambda c: c.executemany("DELETE FROM tea WHERE id = $1", iter([(3,), (4,)])),
        ["DELETE tea: DELETE FROM tea WHERE id = $1"],
    ),
    "fetch": (
        lambda c: c.fetch("SELECT * FROM tea WHERE id = $1", 1, timeout=5),
        ["SELECT tea: SELECT * FROM tea WHERE id = $1"],
    ),
    "fetch by name": (
        lambda c: c.fetch(query="SELECT * FROM tea WHERE name = 'green'", record_class=Row),
        ["SELECT tea: SELECT * FROM tea WHERE name = ?"],
    ),
    "fetchrow": (
        lambda c: c.fetchrow("SELECT * FROM tea WHERE id = $1", 2),
        ["SELECT tea: SELECT * FROM tea WHERE id = $1"],
    ),
    "fetchval": (
        lambda c: c.fetchval("SELECT id, name FROM tea WHERE id = $1", 2, column=1),
        ["SELECT tea: SELECT id, name FROM tea WHERE id = $1"],
    ),
    "fetchmany": (
        lambda c: c.fetchmany("INSERT INTO tea VALUES ($1, 'oolong') RETURNING id", [(5,), (6,)]),
        ["BATCH INSERT tea: INSERT INTO tea VALUES ($1, 'oolong') RETURNING id x2"],
    ),
    "fetchmany by name": (
        lambda c: c.fetchmany(query="DELETE FROM tea WHERE id = $1 RETURNING id", args=[(5,), (6,)]),
        ["BATCH DELETE tea: DELETE FROM tea WHERE id = $1 RETURNING id x2"],
    ),
    "cached": (cached, ["SELECT: SELECT $1::int"] * 2),
    "copy_from_table": (
        lambda c: copied(c, "copy_from_table", "tea"),
        ["COPY tea: COPY tea TO STDOUT"],
    ),
    "copy_from_query": (
        lambda c: copied(c, "copy_from_query", "SELECT name FROM tea WHERE id = 1"),
        ["COPY SELECT tea: COPY (SELECT name FROM tea WHERE id = ?) TO STDOUT"],
    ),
    "copy_from_query with arguments": (
        lambda c: copied(c, "copy_from_query", "SELECT name FROM tea WHERE id = $1", 1),
        ["COPY SELECT tea: COPY (SELECT name FROM tea WHERE id = $1) TO STDOUT"],
    ),
    "copy_to_table": (
        lambda c: c.copy_to_table("tea", source=io.BytesIO(b"7\tmint\n"), schema_name="pg_temp"),
        ["COPY pg_temp.tea: COPY pg_temp.tea FROM STDIN"],
    ),
    "copy_records_to_table": (
        lambda c: c.copy_records_to_table("tea", records=[(8, "lime")], columns=["id", "name"]),
        ["COPY tea: COPY tea FROM STDIN"],
    ),
    "copy of a quoted name": (
        lambda c: copied(c, "copy_from_table", "Tea & Co"),
        ['COPY "Tea & Co": COPY "Tea & Co" TO STDOUT'],
    ),
    "prepare": (lambda c: c.prepare("SELECT 1"), []),
    "prepared fetch": (
        prepared("fetch", "SELECT name FROM tea WHERE id = $1", 1),
        ["SELECT tea: SELECT name FROM tea WHERE id = $1"],
    ),
    "prepared fetchrow": (
        prepared("fetchrow", "SELECT name FROM tea WHERE id = 1"),
        ["SELECT tea: SELECT name FROM tea WHERE id = ?"],
    ),
    "prepared fetchval": (
        prepared("fetchval", "SELECT name FROM tea WHERE id = $1", 1),
        ["SELECT tea: SELECT name FROM tea WHERE id = $1"],
    ),
    "prepared fetchmany": (
        prepared("fetchmany", "UPDATE tea SET id = $1 WHERE id = $1", [(7,), (8,)]),
        ["BATCH UPDATE tea: UPDATE tea SET id = $1 WHERE id = $1 x2"],
    ),
    "prepared executemany": (
        prepared("executemany", "DELETE FROM tea WHERE id = $1", [(7,), (8,)]),
        ["BATCH DELETE tea: DELETE FROM tea WHERE id = $1 x2"],
    ),
    "explain": (explained, ["EXPLAIN SELECT tea: EXPLAIN (FORMAT JSON, VERBOSE, ANALYZE) SELECT name FROM tea"]),
    "awaited cursor": (awaited_cursor, ["SELECT tea: SELECT name FROM tea WHERE id < $1 ORDER BY id"]),
    "iterated cursor": (iterated_cursor, ["SELECT: SELECT generate_series(?, ?)"]),
    "prepared cursor": (prepared_cursor, ["SELECT tea: SELECT name FROM tea WHERE id = $1"] * 2),
    "listen": (lambda c: c.add_listener("news", print), ['LISTEN: LISTEN "news"']),
    "reset": (lambda c: c.reset(), []),
    "codec": (codec, ["SELECT: SELECT ?::json"]),
    "pool": (
        pool,
        [
            "connect",
            "connect",
            "SELECT: SELECT ?",
            "SELECT: SELECT ?",
            "SELECT: SELECT ?",
            "SELECT: SELECT ?",
            "BATCH SELECT: SELECT $1::int x2",
        ],
    ),
    "released": (released, ["connect"]),
    "failed prepare": (
        lambda c: c.prepare("SELECT * FROM coffee"),
        ["SELECT coffee ERROR 42P01: SELECT * FROM coffee"],
    ),
    "failed fetch": (
        lambda c: c.fetch("SELECT * FROM coffee WHERE id = $1", 1),
        ["SELECT coffee ERROR 42P01: SELECT * FROM coffee WHERE id = $1"],
    ),
    "failed execute": (lambda c: c.execute("SELECT 1 / 0"), ["SELECT ERROR 22012: SELECT ? / ?"]),
    "failed cursor": (
        lambda c: c.cursor("SELECT * FROM coffee"),
        ["SELECT coffee ERROR 42P01: SELECT * FROM coffee"],
    ),
    "failed copy": (
        lambda c: c.copy_records_to_table("tea", records=[("seven", "mint")]),
        ["COPY tea ERROR TypeError: COPY tea FROM STDIN"],
    ),
    "failed connect": (
        lambda c: asyncpg.connect(dsn(database="nowhere")),
        ["connect ERROR 3D000"],
    ),
    "wrong arguments": (
        wrong_arguments,
        [
            "SELECT ERROR TypeError: SELECT ?",
            "SELECT ERROR asyncpg.exceptions._base.InterfaceError: SELECT $1::int",
        ],
    ),
    "closed": (closed_before, ["connect", "SELECT ERROR asyncpg.exceptions._base.InterfaceError: SELECT ?"]),
}


def test_every_way(agent: Callable[..., None], recording: Recording) -> None:
    """
    Each way to execute a statement gives one span, and what it gives or raises is the same without the agent.
    """
    plain = go(WAYS, opened, closed, Recording())
    agent()
    assert plain == go(WAYS, opened, closed, recording)
    assert expected(WAYS) == lines(recording)
    url = driver_url("asyncpg")
    server = ("postgresql", url.database, server_address(url), None)
    assert {server, (*server[:1], "nowhere", *server[2:])} == databases(recording)
