"""
The calls of aiomysql and asyncmy.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ._bracket import CONNECT, STATEMENT, TRANSACTION
from ._first_connect import connect_function
from ._server import connection_database
from ._wraps import Call, Wrap, count, has_values

if TYPE_CHECKING:
    from ._wraps import Bracketed, Function


def aiomysql(module: Any) -> list[Wrap]:
    """
    List the functions of aiomysql.
    """
    connection, cursor = module.connection.Connection, module.cursors.Cursor
    of_connection = functools.partial(Wrap, kind=STATEMENT, connection=lambda cursor: cursor._connection)
    return [
        Wrap(*connect_function(module), CONNECT, connection_database),
        *_transactions(connection),
        *(of_connection(cursor, name, read=read) for name, read in _CALLS.items()),
    ]


def asyncmy(module: Any) -> list[Wrap]:
    """
    List the functions of asyncmy.
    """
    connection = module.connection.Connection
    return [
        Wrap(*connect_function(module), CONNECT, connection_database),
        *_transactions(connection),
        Wrap(connection, "cursor", replace=functools.partial(_cursor, module.cursors.Cursor)),
    ]


def _cursor(base: type[Any], make: Function, bracketed: Bracketed) -> Function:
    """
    Hand out cursors of subclasses: the cursors' own classes are immutable.
    """

    @functools.lru_cache(maxsize=64)
    def subclass(cursor_class: type[Any]) -> type[Any]:
        calls = {
            name: bracketed(Wrap(cursor_class, name, STATEMENT, read), getattr(cursor_class, name))
            for name, read in _CALLS.items()
        }
        names = {"__module__": cursor_class.__module__, "__qualname__": cursor_class.__qualname__}
        try:
            return type(cursor_class.__name__, (cursor_class,), {**names, **calls})
        except Exception:  # noqa: BLE001 - a class that allows no subclass, or not this one
            return cursor_class

    @functools.wraps(make)
    def cursor(connection: Any, cursor: Any = None) -> Any:
        cursor_class = cursor or connection._cursor_cls
        is_known = isinstance(cursor_class, type) and issubclass(cursor_class, base)
        return make(connection, subclass(cursor_class) if is_known else cursor)

    return cursor


def _transactions(connection: type[Any]) -> list[Wrap]:
    return [Wrap(connection, name, TRANSACTION, _transaction(name)) for name in ("begin", "commit", "rollback")]


def _transaction(name: str) -> Function:
    return lambda connection: Call(connection, name)


def _query(cursor: Any, query: str, args: Any = None) -> Call:
    return Call(cursor.connection, query, has_values(args), values=args)


def _many(cursor: Any, query: str, args: Any) -> Call | None:
    return Call(cursor.connection, query, True, count(args)) if has_values(args) else None  # it would send nothing


def _procedure(cursor: Any, procname: str, args: Any = ()) -> Call:
    return Call(cursor.connection, f"CALL {procname}", values=args)


_CALLS: dict[str, Function] = {"execute": _query, "executemany": _many, "callproc": _procedure}
