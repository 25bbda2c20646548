"""
The calls of aiomysql and asyncmy.
"""

from __future__ import annotations

import functools
import weakref
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
        *_statements(connection),
        *(of_connection(cursor, name, read=read) for name, read in _CALLS.items()),
    ]


def asyncmy(module: Any) -> list[Wrap]:
    """
    List the functions of asyncmy.
    """
    connection = module.connection.Connection
    return [
        Wrap(*connect_function(module), CONNECT, connection_database),
        *_statements(connection),
        *_prepared_statements(module),
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


def _prepared_statements(module: Any) -> list[Wrap]:
    """
    List the functions of prepared statements, which came with 0.2.13.

    They do not know their own text, so that `prepare()` has to note it.
    """
    statement = getattr(module.connection, "PreparedStatement", None)
    if statement is None:
        return []
    texts: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def execute(prepared: Any, args: Any = ()) -> Call:
        return Call(prepared._connection, texts.get(prepared), has_values(args), values=args)

    def execute_bulk(prepared: Any, rows: Any) -> Call:
        return Call(prepared._connection, texts.get(prepared), True, count(rows))

    of_connection = functools.partial(Wrap, kind=STATEMENT, connection=lambda prepared: prepared._connection)
    return [
        Wrap(module.connection.Connection, "prepare", replace=functools.partial(_prepare, texts)),
        of_connection(statement, "execute", read=execute),
        of_connection(statement, "execute_bulk", read=execute_bulk),
    ]


def _prepare(texts: Any, prepare: Function, bracketed: Bracketed) -> Function:
    """
    Note the text of what is prepared; a text that the server refuses makes a span here.
    """
    call = bracketed(Wrap(None, "prepare", STATEMENT, _preparation), prepare)

    @functools.wraps(prepare)
    async def noted(*args: Any, **kwargs: Any) -> Any:
        prepared = await call(*args, **kwargs)
        texts[prepared] = _preparation(*args, **kwargs).query
        return prepared

    return noted


def _preparation(connection: Any, query: Any) -> Call:
    return Call(connection, query, is_preparation=True)


def _statements(connection: type[Any]) -> list[Wrap]:
    transactions = (Wrap(connection, name, TRANSACTION, _transaction(name)) for name in ("begin", "commit", "rollback"))
    # The cursors call it, too; then it passes.
    return [*transactions, Wrap(connection, "query", STATEMENT, _sent)]


def _sent(connection: Any, sql: Any, unbuffered: bool = False) -> Call:  # noqa: ARG001 - the driver's
    return Call(connection, sql)


def _transaction(name: str) -> Function:
    return lambda connection: Call(connection, name)


def _query(cursor: Any, query: str, args: Any = None) -> Call:
    return Call(cursor.connection, query, has_values(args), values=args)


def _many(cursor: Any, query: str, args: Any) -> Call | None:
    return Call(cursor.connection, query, True, count(args)) if has_values(args) else None  # it would send nothing


def _procedure(cursor: Any, procname: str, args: Any = ()) -> Call:
    return Call(cursor.connection, f"CALL {procname}", values=args)


_CALLS: dict[str, Function] = {"execute": _query, "executemany": _many, "callproc": _procedure}
