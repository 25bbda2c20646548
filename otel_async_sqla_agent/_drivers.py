"""
The table of the async drivers: which of their functions are calls, and what each call says.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ._bracket import CONNECT, STATEMENT, TRANSACTION
from ._first_connect import connect_function
from ._semconv import Database
from ._server import connection_database

if TYPE_CHECKING:
    from collections.abc import Callable, Sized
    from types import ModuleType

    Function = Callable[..., Any]
    # Puts a bracket around a function, as its row says.
    Bracketed = Callable[["Wrap", Function], Function]


class Call(NamedTuple):
    """
    What a call says, read from its own arguments.
    """

    connection: Any
    """
    The driver's.
    """

    text: str
    """
    The SQL as the application has given it; empty where nothing is sent.
    """

    parameterised: bool = False
    """
    Whether the values are apart from the text.
    """

    batch_size: int = 0
    """
    How many parameter sets it has, if that is known and it can have several.
    """

    is_preparation: bool = False
    """
    Whether it executes nothing yet: it makes a span only if it fails.
    """


class Wrap(NamedTuple):
    """
    One function of a driver.
    """

    owner: Any
    """
    The class or module that has it.
    """

    name: str
    kind: int = 0
    """
    Which brackets it nests in: STATEMENT, TRANSACTION, CONNECT; 0 for none.
    """

    read: Function | None = None
    """
    Read a call from its arguments, or the database to be connected to; None where a call is nothing but a round trip of
    a call before, which contrib makes spans of.
    """

    connection: Function = lambda instance: instance
    """
    Find the connection, by what the function is a method of.
    """

    bare: Callable[[Function], Function] | None = None
    """
    Keep contrib out of the function, where it does not stand in front of the function itself.
    """

    replace: Callable[[Function, Bracketed], Function] | None = None
    """
    Make the replacement, where it is not the function itself that is a call.
    """


class Driver(NamedTuple):
    """
    One driver.
    """

    dialect: str
    """
    SQLAlchemy's name of its database.
    """

    wraps: Callable[[ModuleType], list[Wrap]]
    """
    List the functions of the imported driver; raises AttributeError where its shape is not known.
    """


def _count(sets: Any) -> int:
    sized: Sized = sets
    return len(sized) if hasattr(sets, "__len__") else 0  # an iterator is the driver's to consume


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


# asyncpg


def _asyncpg(module: Any) -> list[Wrap]:
    connection, prepared = module.connection.Connection, module.prepared_stmt.PreparedStatement
    cursors = module.cursor
    of_connection = functools.partial(Wrap, connection=lambda resource: resource._connection)
    many = [name for name in ("executemany", "fetchmany") if hasattr(connection, name)]  # fetchmany came with 0.30
    copies: dict[str, Function] = {
        "copy_from_table": _asyncpg_copy("COPY {} TO STDOUT"),
        "copy_from_query": _asyncpg_copy_query,
        "copy_to_table": _asyncpg_copy("COPY {} FROM STDIN"),
        "copy_records_to_table": _asyncpg_copy("COPY {} FROM STDIN"),
    }
    singles = ("fetch", "fetchrow", "fetchval")
    return [
        Wrap(*connect_function(module), CONNECT, _asyncpg_database),
        *(Wrap(connection, name, STATEMENT, _asyncpg_query) for name in ("execute", *singles)),
        *(Wrap(connection, name, STATEMENT, _asyncpg_many) for name in many),
        *(Wrap(connection, name, STATEMENT, read) for name, read in copies.items()),
        # A text that the server refuses fails here, also before SQLAlchemy executes what it has prepared.
        Wrap(connection, "_get_statement", STATEMENT, _asyncpg_preparation),
        Wrap(connection, "reset", read=_nothing),  # what a pool does to a connection that comes back
        *(of_connection(prepared, name, STATEMENT, _asyncpg_prepared) for name in singles),
        *(of_connection(prepared, name, STATEMENT, _asyncpg_prepared_many) for name in many),
        # `connection.cursor()`, awaited or iterated; SQLAlchemy's streams
        *(of_connection(cursors.BaseCursor, name, STATEMENT, _asyncpg_cursor) for name in ("_bind", "_bind_exec")),
        *(of_connection(cursors.Cursor, name) for name in ("fetch", "fetchrow", "forward")),
        of_connection(cursors.CursorIterator, "__anext__"),
    ]


def _asyncpg_database(
    *,
    dsn: str | None = None,
    host: Any = None,
    port: Any = None,
    user: str | None = None,
    database: str | None = None,
    **_: Any,
) -> Database:
    url = urlsplit(dsn or "")
    return Database(
        "postgresql",
        namespace=database or url.path.strip("/") or None,
        address=host if isinstance(host, str) else url.hostname,
        port=port if isinstance(port, int) else url.port,
        user=user or url.username,
    )


def _asyncpg_query(connection: Any, query: str, *args: Any, **_: Any) -> Call:
    return Call(connection, query, bool(args))


def _asyncpg_many(connection: Any, command: str, args: Any, **_: Any) -> Call:
    return Call(connection, command, True, _count(args))


def _asyncpg_preparation(connection: Any, query: str, *_args: Any, **_: Any) -> Call:
    return Call(connection, query, is_preparation=True)


def _asyncpg_prepared(prepared: Any, *args: Any, **_: Any) -> Call:
    return Call(prepared._connection, prepared._query, bool(args))


def _asyncpg_prepared_many(prepared: Any, args: Any, **_: Any) -> Call:
    return Call(prepared._connection, prepared._query, True, _count(args))


def _asyncpg_cursor(cursor: Any, *_args: Any, **_: Any) -> Call:
    return Call(cursor._connection, cursor._query, bool(cursor._args))


def _asyncpg_copy(command: str) -> Function:
    def read(connection: Any, table_name: str, *, schema_name: str | None = None, **_: Any) -> Call:
        return Call(connection, command.format(".".join(filter(None, (schema_name, table_name)))))

    return read


def _asyncpg_copy_query(connection: Any, query: str, *args: Any, **_: Any) -> Call:
    return Call(connection, f"COPY ({query}) TO STDOUT", bool(args))


# aiosqlite


def _aiosqlite(module: Any) -> list[Wrap]:
    connection = module.core.Connection
    return [
        Wrap(*connect_function(module), CONNECT, connection_database, bare=_aiosqlite_connect),
        # Whatever a connection or a cursor does goes through here, with the method of sqlite3 that the worker calls.
        Wrap(connection, "_execute", STATEMENT, _aiosqlite_call),
    ]


def _aiosqlite_connect(connect: Function) -> Function:
    """
    Take contrib's proxy off the connection of sqlite3: it would work in a thread that knows no parent span.
    """

    @functools.wraps(connect)
    async def without_proxy(connection: Any) -> Any:
        connector = connection._connector
        connection._connector = lambda: _without_proxy(connector())
        try:
            return await connect(connection)
        finally:
            connection._connector = connector

    return without_proxy


def _without_proxy(connection: Any) -> Any:
    is_contribs = type(connection).__module__.startswith("opentelemetry.instrumentation.")
    return connection.__wrapped__ if is_contribs else connection


def _aiosqlite_call(connection: Any, function: Any, *args: Any, **_: Any) -> Call | None:
    name = getattr(function, "__name__", "")
    if name in ("execute", "_execute_fetchall", "_execute_insert"):
        return Call(connection, args[0], len(args) > 1 and bool(args[1]))
    if name == "executemany":
        return Call(connection, args[0], True, _count(args[1]))
    if name == "executescript":
        return Call(connection, args[0])
    if name in ("commit", "rollback") and connection.in_transaction:
        return Call(connection, name)
    return None


# psycopg


def _psycopg(module: Any) -> list[Wrap]:
    of_connection = functools.partial(Wrap, kind=STATEMENT, connection=lambda cursor: cursor._conn)
    return [
        Wrap(*connect_function(module), CONNECT, _psycopg_database),
        Wrap(module.AsyncConnection, "_exec_command", TRANSACTION, _psycopg_command),
        *(of_connection(module.AsyncCursor, name, read=_psycopg_query) for name in ("execute", "stream", "copy")),
        of_connection(module.AsyncCursor, "executemany", read=_psycopg_many),
        of_connection(module.AsyncServerCursor, "execute", read=_psycopg_query),
    ]


def _psycopg_database(_connection_class: Any, conninfo: str = "", **kwargs: Any) -> Database:
    from psycopg.conninfo import conninfo_to_dict

    known = {"host", "port", "dbname", "user"}
    facts = conninfo_to_dict(conninfo, **{key: value for key, value in kwargs.items() if key in known})
    port = str(facts.get("port", ""))
    return Database(
        "postgresql",
        namespace=_one(facts.get("dbname")),
        address=_one(facts.get("host")),
        port=int(port) if port.isdecimal() else None,
        user=_one(facts.get("user")),
    )


def _one(value: Any) -> str | None:
    return value if isinstance(value, str) and value and "," not in value else None


def _psycopg_query(cursor: Any, query: Any, params: Any = None, **_: Any) -> Call:
    return Call(cursor._conn, _psycopg_text(query, cursor), bool(params) and isinstance(query, (str, bytes)))


def _psycopg_many(cursor: Any, query: Any, params_seq: Any, **_: Any) -> Call:
    return Call(cursor._conn, _psycopg_text(query, cursor), isinstance(query, (str, bytes)), _count(params_seq))


def _psycopg_command(connection: Any, command: Any, *_args: Any, **_: Any) -> Call:
    return Call(connection, _psycopg_text(command, connection))


def _psycopg_text(query: Any, context: Any) -> str:
    """
    Write down a query; a composed one may have values in it, and a template string has nothing but them.
    """
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if hasattr(query, "as_string"):
        return str(query.as_string(context))
    return query if isinstance(query, str) else "?"


# aiomysql and asyncmy


def _aiomysql(module: Any) -> list[Wrap]:
    connection, cursor = module.connection.Connection, module.cursors.Cursor
    of_connection = functools.partial(Wrap, kind=STATEMENT, connection=lambda cursor: cursor._connection)
    return [
        Wrap(*connect_function(module), CONNECT, connection_database),
        *_mysql_transactions(connection),
        *(of_connection(cursor, name, read=read) for name, read in _MYSQL_CALLS.items()),
    ]


def _asyncmy(module: Any) -> list[Wrap]:
    connection = module.connection.Connection
    return [
        Wrap(*connect_function(module), CONNECT, connection_database),
        *_mysql_transactions(connection),
        Wrap(connection, "cursor", replace=_asyncmy_cursor),
    ]


def _asyncmy_cursor(make: Function, bracketed: Bracketed) -> Function:
    """
    Hand out cursors of subclasses: the cursors' own classes are immutable.
    """

    @functools.lru_cache(maxsize=64)
    def subclass(cursor_class: Any) -> Any:
        calls = {
            name: bracketed(Wrap(cursor_class, name, STATEMENT, read), getattr(cursor_class, name))
            for name, read in _MYSQL_CALLS.items()
        }
        names = {"__module__": cursor_class.__module__, "__qualname__": cursor_class.__qualname__}
        return type(cursor_class.__name__, (cursor_class,), {**names, **calls})

    @functools.wraps(make)
    def cursor(connection: Any, cursor: Any = None) -> Any:
        cursor_class: Any = cursor or type(make(connection))
        return make(connection, subclass(cursor_class))

    return cursor


def _mysql_transactions(connection: type[Any]) -> list[Wrap]:
    return [Wrap(connection, name, TRANSACTION, _mysql_transaction(name)) for name in ("begin", "commit", "rollback")]


def _mysql_transaction(name: str) -> Function:
    return lambda connection: Call(connection, name)


def _mysql_query(cursor: Any, query: str, args: Any = None) -> Call:
    return Call(cursor.connection, query, bool(args))


def _mysql_many(cursor: Any, query: str, args: Any) -> Call:
    return Call(cursor.connection, query, True, _count(args))


def _mysql_procedure(cursor: Any, procname: str, _args: Any = ()) -> Call:
    return Call(cursor.connection, f"CALL {procname}")


_MYSQL_CALLS: dict[str, Function] = {"execute": _mysql_query, "executemany": _mysql_many, "callproc": _mysql_procedure}

DRIVERS = {
    "aiomysql": Driver("mysql", _aiomysql),
    "aiosqlite": Driver("sqlite", _aiosqlite),
    "asyncmy": Driver("mysql", _asyncmy),
    "asyncpg": Driver("postgresql", _asyncpg),
    "psycopg": Driver("postgresql", _psycopg),
}
