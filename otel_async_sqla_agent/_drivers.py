"""
The table of the async drivers.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ._bracket import CONNECT, STATEMENT
from ._drivers_mysql import aiomysql, asyncmy
from ._drivers_postgresql import asyncpg, psycopg
from ._first_connect import connect_function
from ._server import connection_database
from ._wraps import Call, Driver, Wrap, count, has_values

if TYPE_CHECKING:
    from ._wraps import Function


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
        values = args[1] if len(args) > 1 else None
        return Call(connection, args[0], has_values(values), values=values)
    if name == "executemany":
        return Call(connection, args[0], True, count(args[1]))
    if name == "executescript":
        return Call(connection, args[0])
    if name in ("commit", "rollback") and connection.in_transaction:
        return Call(connection, name)
    return None


DRIVERS = {
    "aiomysql": Driver("mysql", aiomysql),
    "aiosqlite": Driver("sqlite", _aiosqlite),
    "asyncmy": Driver("mysql", asyncmy),
    "asyncpg": Driver("postgresql", asyncpg),
    "psycopg": Driver("postgresql", psycopg),
}
