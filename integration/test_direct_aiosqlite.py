from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from typing import Any

import aiosqlite
import pytest

from integration.direct import Way, databases, expected, go, lines
from tests.recording import Recording

# Before, sqlite3 did not tell the code.
UNIQUE, ERROR, FOREIGN_KEY = (
    ("1555", "1", "787") if sys.version_info >= (3, 11) else ("sqlite3.IntegrityError", "sqlite3.OperationalError") * 2
)[:3]

# What it says of parameters that are none.
NO_PARAMETERS = "sqlite3.ProgrammingError" if sys.version_info >= (3, 11) else "ValueError"


async def opened() -> Any:
    connection = await aiosqlite.connect(":memory:")
    await connection.executescript(
        """
        PRAGMA foreign_keys = ON;
        CREATE TABLE tea (id integer PRIMARY KEY, name text);
        CREATE TABLE cup (tea integer REFERENCES tea (id) DEFERRABLE INITIALLY DEFERRED);
        """
    )
    return connection


async def closed(connection: Any) -> None:
    await connection.close()


def of_cursor(method: str, *args: Any) -> Callable[[Any], Any]:
    async def way(connection: Any) -> Any:
        async with connection.cursor() as cursor:
            await getattr(cursor, method)(*args)
            return [row async for row in cursor]

    return way


async def in_block(connection: Any) -> list[Any]:
    async with connection.execute("SELECT name FROM tea WHERE id = ?", (1,)) as cursor:
        return [await cursor.fetchone(), await cursor.fetchmany(), await cursor.fetchall()]


async def backup(connection: Any) -> list[Any]:
    async with aiosqlite.connect(":memory:") as target:
        await connection.backup(target)
        return list(await target.execute_fetchall("SELECT * FROM tea"))


async def function(connection: Any) -> list[Any]:
    await connection.create_function("twice", 1, lambda value: 2 * value)
    return list(await connection.execute_fetchall("SELECT twice(?)", [21]))


async def wrong_arguments(connection: Any) -> list[str]:
    """
    Return what wrong arguments raise, more often than the layer may fail.
    """
    raised = []
    for args in ((), (None,), (5,), (b"SELECT 1",), (object(),), ([],), ("SELECT ?", 5)):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever the driver raises: the type is compared
            await connection.execute(*args)
        raised.append(type(caught.value).__name__)
    return raised


async def closed_before(connection: Any) -> None:
    own = await aiosqlite.connect(":memory:")
    cursor = await own.cursor()
    await own.close()
    await cursor.execute("SELECT 1")


WAYS: dict[str, Way] = {
    "execute": (
        lambda c: c.execute_insert("INSERT INTO tea VALUES (1, 'green')"),
        ["INSERT tea: INSERT INTO tea VALUES (?, ?)"],
    ),
    "block": (in_block, ["SELECT tea: SELECT name FROM tea WHERE id = ?"]),
    "execute_fetchall": (
        lambda c: c.execute_fetchall("SELECT name FROM tea WHERE id = :id", {"id": 1}),
        ["SELECT tea: SELECT name FROM tea WHERE id = :id"],
    ),
    "executemany": (
        lambda c: c.executemany("INSERT INTO tea VALUES (?, 'red')", [(2,), (3,)]),
        ["BATCH INSERT tea: INSERT INTO tea VALUES (?, 'red') x2"],
    ),
    "executemany of an iterator": (
        lambda c: c.executemany("DELETE FROM tea WHERE id = ?", iter([(2,), (3,)])),
        ["DELETE tea: DELETE FROM tea WHERE id = ?"],
    ),
    "executescript": (
        lambda c: c.executescript("DELETE FROM tea WHERE id = 4; SELECT 'x';"),
        ["DELETE tea SELECT: DELETE FROM tea WHERE id = ?; SELECT ?;"],
    ),
    "cursor execute": (of_cursor("execute", "SELECT 'green'"), ["SELECT: SELECT ?"]),
    "cursor executemany": (
        of_cursor("executemany", "DELETE FROM tea WHERE id = ?", [(5,), (6,)]),
        ["BATCH DELETE tea: DELETE FROM tea WHERE id = ? x2"],
    ),
    "cursor executescript": (of_cursor("executescript", "SELECT 1"), ["SELECT: SELECT ?"]),
    "commit": (lambda c: c.commit(), []),
    "iterdump": (lambda c: all_of(c.iterdump()), []),
    "backup": (backup, ["connect", "SELECT tea: SELECT * FROM tea"]),
    "create_function": (function, ["SELECT: SELECT twice(?)"]),
    "row_factory": (lambda c: with_rows(c), ["SELECT tea: SELECT * FROM tea"]),
    "failed execute": (
        lambda c: c.execute("SELECT * FROM coffee WHERE id = ?", (1,)),
        [f"SELECT coffee ERROR {ERROR}: SELECT * FROM coffee WHERE id = ?"],
    ),
    "failed executemany": (
        lambda c: c.executemany("INSERT INTO tea VALUES (?, '')", [(9,), (9,)]),
        [f"BATCH INSERT tea ERROR {UNIQUE}: INSERT INTO tea VALUES (?, '') x2"],
    ),
    "failed connect": (
        lambda c: aiosqlite.connect("/nowhere/tea.db"),
        [f"connect ERROR {'14' if sys.version_info >= (3, 11) else 'sqlite3.OperationalError'}"],
    ),
    "wrong arguments": (
        wrong_arguments,
        ["SELECT ERROR TypeError: SELECT ?", f"SELECT ERROR {NO_PARAMETERS}: SELECT ?"],
    ),
    "closed": (closed_before, ["connect", "SELECT ERROR ValueError: SELECT ?"]),
}


async def all_of(items: Any) -> list[Any]:
    return [item async for item in items]


async def with_rows(connection: Any) -> list[Any]:
    connection.row_factory = sqlite3.Row
    return [dict(row) for row in await connection.execute_fetchall("SELECT * FROM tea")]


def test_every_way(agent: Callable[..., None], recording: Recording) -> None:
    """
    Each way to execute a statement gives one span, and what it gives or raises is the same without the agent.
    """
    plain = go(WAYS, opened, closed, Recording())
    agent()
    assert plain == go(WAYS, opened, closed, recording)
    assert expected(WAYS) == lines(recording)
    assert {("sqlite", None, None, None), ("sqlite", "/nowhere/tea.db", None, None)} == databases(recording)


async def committed(connection: Any) -> None:
    await connection.execute("INSERT INTO tea VALUES (1, '')")
    await connection.execute("SAVEPOINT a")
    await connection.execute("RELEASE a")
    await connection.commit()
    await connection.commit()
    await connection.execute("BEGIN IMMEDIATE")
    await connection.rollback()
    await connection.rollback()


async def failed_commit(connection: Any) -> None:
    await connection.execute("INSERT INTO cup VALUES (7)")
    await connection.commit()


TRANSACTIONS: dict[str, Way] = {
    "committed": (
        committed,
        ["INSERT tea: INSERT INTO tea VALUES (?, ?)", "SAVEPOINT", "RELEASE", "COMMIT", "BEGIN", "ROLLBACK"],
    ),
    "failed commit": (
        failed_commit,
        ["INSERT cup: INSERT INTO cup VALUES (?)", f"COMMIT ERROR {FOREIGN_KEY}"],
    ),
}


@pytest.mark.parametrize("spans", ["statement", "statement,transaction"])
def test_transactions(spans: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    Transaction control appears once where SPANS asks for it and something is sent; else only a COMMIT that fails does.
    """
    plain = go(TRANSACTIONS, opened, closed, Recording())
    agent(spans=spans)
    assert plain == go(TRANSACTIONS, opened, closed, recording)
    assert expected(TRANSACTIONS, transactions="transaction" in spans) == lines(recording)
