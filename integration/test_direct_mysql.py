from __future__ import annotations

from collections.abc import Callable
from typing import Any

import aiomysql
import asyncmy
import asyncmy.cursors
import pytest

from integration.databases import driver_url
from integration.direct import Way, databases, expected, go, lines
from tests.recording import Recording

MODULES: dict[str, Any] = {"aiomysql": aiomysql, "asyncmy": asyncmy}
MODULES_OF_CURSORS: dict[str, Any] = {"aiomysql": aiomysql.cursors, "asyncmy": asyncmy.cursors}
made: list[Any] = []


def arguments(driver: str, **options: Any) -> dict[str, Any]:
    url = driver_url(driver)
    return {"host": url.host, "port": url.port, "user": url.username, "db": url.database, **options}


def opened(driver: str, **options: Any) -> Callable[[], Any]:
    async def connect() -> Any:
        connection = await MODULES[driver].connect(**arguments(driver, **options))
        async with connection.cursor() as cursor:
            await cursor.execute("CREATE TEMPORARY TABLE tea (id int PRIMARY KEY, name varchar(20))")
        return connection

    return connect


async def closed(connection: Any) -> None:
    await connection.ensure_closed()


def of(method: str, *args: Any, cursor: Any = None, fetch: bool = True, **options: Any) -> Callable[[Any], Any]:
    """
    Return how to use one method of a cursor: its result, and the rows.
    """

    async def way(connection: Any) -> Any:
        async with connection.cursor(cursor) if cursor else connection.cursor() as cur:
            result = await getattr(cur, method)(*args, **options)
            return result, await cur.fetchall() if fetch else cur.rowcount

    return way


def with_cursors(driver: str) -> dict[str, Way]:
    """
    Return the ways to execute a statement with each class of cursors.
    """
    cursors = MODULES_OF_CURSORS[driver]

    class Own(cursors.DictCursor):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

        async def execute(self, query: str, args: Any = None) -> Any:
            return await super().execute(query, args)

    async def own(connection: Any) -> Any:
        made.clear()
        async with connection.cursor(Own) as cursor:
            await cursor.execute("SELECT %s AS tea", ("own",))
            return (await cursor.fetchall(), isinstance(cursor, Own), len(made))

    classes = [cursors.Cursor, cursors.DictCursor, cursors.SSCursor, cursors.SSDictCursor]
    return {
        "own cursor": (own, ["SELECT: SELECT %s AS tea"]),
        **{
            cls.__name__: (of("execute", "SELECT %s AS tea", ("x",), cursor=cls), ["SELECT: SELECT %s AS tea"])
            for cls in classes
        },
    }


async def queried(connection: Any) -> list[Any]:
    """
    Return the counts of rows.
    """
    changed = await connection.query("INSERT INTO tea VALUES (20, 'mint'), (21, 'lime')")
    selected = await connection.query(sql=b"SELECT 'x' FROM tea WHERE id >= 20", unbuffered=False)
    return [changed, selected, await connection.query("SET @a = 1", True)]


async def wrongly_queried(connection: Any) -> list[str]:
    """
    Return what wrong arguments raise, more often than the layer may fail.
    """
    raised = []
    for args in ((), (None,), (5,), (object(),), ([],), ("SELECT 1", False, 3)):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever the driver raises: the type is compared
            await connection.query(*args)
        raised.append(type(caught.value).__name__)
    return raised


def prepared(method: str, sql: Any, *args: Any, **options: Any) -> Callable[[Any], Any]:
    """
    Return how to use one method of asyncmy's own prepared statements, twice.
    """

    async def way(connection: Any) -> Any:
        async with await connection.prepare(sql) as statement:
            results = [await getattr(statement, method)(*args, **options) for _ in range(2)]
        return [(result.rows, result.affected_rows) for result in results]

    return way


async def wrongly_prepared(connection: Any) -> list[str]:
    """
    Return what wrong arguments raise: of the preparation, of the execution, and after the statement is closed.
    """
    raised = []
    with pytest.raises(TypeError) as unawaited:
        await connection.prepare()
    statement = await connection.prepare(query="SELECT ?")
    with pytest.raises(asyncmy.errors.ProgrammingError) as unequal:
        await statement.execute((1, 2))
    with pytest.raises(ValueError, match="bulk-compatible") as mixed:
        await statement.execute_bulk([(1,), ("one",)])
    await statement.close()
    raised = [unawaited, unequal, mixed]
    for _ in range(6):
        with pytest.raises(asyncmy.errors.ProgrammingError) as closed:
            await statement.execute((1,))
        raised.append(closed)
    return [repr(caught.value) for caught in raised]


PREPARED: dict[str, Way] = {
    "prepare": (lambda c: c.prepare("SELECT 1"), []),
    "prepared": (prepared("execute", "SELECT ?, 'x'", ("y",)), ["SELECT: SELECT ?, 'x'"] * 2),
    "prepared, one value": (prepared("execute", b"SELECT ?", args=1), ["SELECT: SELECT ?"] * 2),
    "prepared, no value": (prepared("execute", "SELECT 'x'"), ["SELECT: SELECT ?"] * 2),
    "prepared batch": (
        prepared("execute_bulk", "REPLACE INTO tea VALUES (?, ?)", [(30, "a"), (31, "b")]),
        ["BATCH REPLACE tea: REPLACE INTO tea VALUES (?, ?) x2"] * 2,
    ),
    "failed prepare": (
        lambda c: c.prepare("SELECT * FROM coffee WHERE id = ?"),
        ["SELECT coffee ERROR 1146: SELECT * FROM coffee WHERE id = ?"],
    ),
    "failed prepared": (
        prepared("execute", "INSERT INTO tea VALUES (?, 'x')", (40,)),
        [
            "INSERT tea: INSERT INTO tea VALUES (?, 'x')",
            "INSERT tea ERROR 1062: INSERT INTO tea VALUES (?, 'x')",
        ],
    ),
    "wrongly prepared": (
        wrongly_prepared,
        ["SELECT ERROR asyncmy.errors.ProgrammingError: SELECT ?", "BATCH SELECT ERROR ValueError: SELECT ? x2"],
    ),
}


def of_driver(driver: str) -> dict[str, Way]:
    """
    Return the ways that have something of the driver's own.
    """
    module = MODULES[driver]

    async def pool(connection: Any) -> list[Any]:
        found = []
        async with module.create_pool(minsize=1, maxsize=1, **arguments(driver, autocommit=True)) as pool:
            for number in (1, 2):
                async with pool.acquire() as member, member.cursor() as cursor:
                    await cursor.execute("SELECT %s", (number,))
                    found.append(await cursor.fetchall())
        return found

    async def closed_cursor(connection: Any) -> list[str]:
        raised = []
        cursor = connection.cursor()
        await cursor.close()
        for _ in range(6):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever the driver raises: the type is compared
                await cursor.execute("SELECT 1")
            raised.append(repr(caught.value))
        return raised

    async def default_cursor(connection: Any) -> Any:
        options = {"cursorclass" if driver == "aiomysql" else "cursor_cls": MODULES_OF_CURSORS[driver].DictCursor}
        own = await module.connect(**arguments(driver, **options))
        async with own.cursor() as cursor:
            await cursor.execute("SELECT 1 AS tea")
            rows = await cursor.fetchall()
        await own.ensure_closed()
        return rows

    async def wrong(connection: Any) -> list[str]:
        raised = []
        for args in ((), (None,), (5,), (object(),), ([],), ("SELECT 1", (), 3)):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever the driver raises: the type is compared
                await connection.cursor().execute(*args)
            raised.append(type(caught.value).__name__)
        return raised

    return {
        "pool": (pool, ["connect", "SELECT: SELECT %s", "SELECT: SELECT %s"]),
        "closed cursor": (closed_cursor, []),
        "default cursor": (default_cursor, ["connect", "SELECT: SELECT ? AS tea"]),
        "wrong arguments": (wrong, []),
        "failed connect": (
            lambda c: module.connect(**arguments(driver, db="nowhere")),
            ["connect ERROR 1049"],
        ),
        **with_cursors(driver),
        **(PREPARED if driver == "asyncmy" else {}),
    }


WAYS: dict[str, Way] = {
    "execute": (
        of("execute", "INSERT INTO tea VALUES (1, 'green')"),
        ["INSERT tea: INSERT INTO tea VALUES (?, ?)"],
    ),
    "execute bytes": (of("execute", b"SELECT 'green'"), ["SELECT: SELECT ?"]),
    "execute with a tuple": (
        of("execute", "SELECT * FROM tea WHERE id = %s", (1,)),
        ["SELECT tea: SELECT * FROM tea WHERE id = %s"],
    ),
    "execute with a mapping": (
        of("execute", query="SELECT * FROM tea WHERE id = %(id)s", args={"id": 1}),
        ["SELECT tea: SELECT * FROM tea WHERE id = %(id)s"],
    ),
    "execute with a value": (
        of("execute", "SELECT * FROM tea WHERE id = %s", 1),
        ["SELECT tea: SELECT * FROM tea WHERE id = %s"],
    ),
    "executemany, one INSERT": (
        of("executemany", "INSERT INTO tea VALUES (%s, %s)", [(2, "black"), (3, "red")], fetch=False),
        ["BATCH INSERT tea: INSERT INTO tea VALUES (%s, %s) x2"],
    ),
    "executemany, row by row": (
        of("executemany", query="UPDATE tea SET name = %s WHERE id = %s", args=[("x", 2), ("y", 3)], fetch=False),
        ["BATCH UPDATE tea: UPDATE tea SET name = %s WHERE id = %s x2"],
    ),
    "executemany of nothing": (of("executemany", "INSERT INTO tea VALUES (%s, %s)", [], fetch=False), []),
    "failed execute": (
        of("execute", "SELECT * FROM coffee WHERE id = %s", (1,)),
        ["SELECT coffee ERROR 1146: SELECT * FROM coffee WHERE id = %s"],
    ),
    "failed executemany": (
        of("executemany", "INSERT INTO tea VALUES (%s, %s)", [(1, ""), (1, "")]),
        ["BATCH INSERT tea ERROR 1062: INSERT INTO tea VALUES (%s, %s) x2"],
    ),
    "query": (
        queried,
        [
            "INSERT tea: INSERT INTO tea VALUES (?, ?), (?, ?)",
            "SELECT tea: SELECT ? FROM tea WHERE id >= ?",
            "SET: SET @a = ?",
        ],
    ),
    "failed query": (
        lambda c: c.query("SELECT * FROM coffee"),
        ["SELECT coffee ERROR 1146: SELECT * FROM coffee"],
    ),
    "wrong arguments of query": (wrongly_queried, []),
    "procedure": (
        of("execute", "CREATE PROCEDURE brew(IN cups int) SELECT cups, 'x'"),
        ["CREATE PROCEDURE brew SELECT: CREATE PROCEDURE brew(IN cups int) SELECT cups, ?"],
    ),
    "callproc": (of("callproc", "brew", (2,)), ["CALL brew: CALL brew"]),
    "callproc by name": (of("callproc", procname="brew", args=[3]), ["CALL brew: CALL brew"]),
    "no procedure": (of("execute", "DROP PROCEDURE brew"), ["DROP PROCEDURE brew: DROP PROCEDURE brew"]),
    "failed callproc": (of("callproc", "stew"), ["CALL stew ERROR 1305: CALL stew"]),
}


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        pytest.param("aiomysql", {}, id="aiomysql"),
        pytest.param("asyncmy", {}, id="asyncmy"),
        pytest.param("asyncmy", {"stmt_cache_size": 10}, id="asyncmy-statement-cache"),
    ],
)
def test_every_way(driver: str, options: dict[str, Any], agent: Callable[..., None], recording: Recording) -> None:
    """
    Each way to execute a statement gives one span, and what it gives or raises is the same without the agent.
    """
    url = driver_url(driver)
    ways = {**WAYS, **of_driver(driver)}
    plain = go(ways, opened(driver, **options), closed, Recording())
    agent()
    assert plain == go(ways, opened(driver, **options), closed, recording)
    assert expected(ways) == lines(recording)
    assert {url.database, "nowhere"} == {name for _, name, *_ in databases(recording)}


def test_without_prepared_statements(
    agent: Callable[..., None], recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A version of asyncmy that has no prepared statements yet is instrumented all the same.
    """
    driver_url("asyncmy")
    monkeypatch.delattr(asyncmy.connection, "PreparedStatement", raising=False)
    ways: dict[str, Way] = {"query": (lambda c: c.query("SELECT 1"), ["SELECT: SELECT ?"])}
    agent()
    go(ways, opened("asyncmy"), closed, recording)
    assert expected(ways) == lines(recording)


async def committed(connection: Any) -> None:
    await connection.begin()
    async with connection.cursor() as cursor:
        await cursor.execute("SAVEPOINT a")
        await cursor.execute("ROLLBACK TO SAVEPOINT a")
        await cursor.execute("SELECT 1")
    await connection.commit()
    await connection.rollback()


async def queried_transaction(connection: Any) -> None:
    for sql in ("START TRANSACTION", "SELECT 1", "SAVEPOINT a", "COMMIT AND NO CHAIN"):
        await connection.query(sql)
    with pytest.raises(Exception, match="SAVEPOINT a does not exist"):
        await connection.query("ROLLBACK TO a")


TRANSACTIONS: dict[str, Way] = {
    "query": (
        queried_transaction,
        ["START TRANSACTION", "SELECT: SELECT ?", "SAVEPOINT", "COMMIT", "ROLLBACK TO ERROR 1305"],
    ),
    "committed": (
        committed,
        ["BEGIN", "SAVEPOINT", "ROLLBACK TO SAVEPOINT", "SELECT: SELECT ?", "COMMIT", "ROLLBACK"],
    ),
}


@pytest.mark.parametrize("spans", ["statement", "statement,transaction"])
@pytest.mark.parametrize("driver", MODULES)
def test_transactions(driver: str, spans: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    Transaction control appears once where SPANS asks for it.
    """
    driver_url(driver)
    plain = go(TRANSACTIONS, opened(driver), closed, Recording())
    agent(spans=spans)
    assert plain == go(TRANSACTIONS, opened(driver), closed, recording)
    assert expected(TRANSACTIONS, transactions="transaction" in spans) == lines(recording)
