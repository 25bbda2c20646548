"""
The calls of asyncpg and psycopg.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ._bracket import CONNECT, STATEMENT, TRANSACTION
from ._first_connect import connect_function
from ._semconv import Database
from ._server import postgresql_socket
from ._wraps import Call, Wrap, count, has_values

if TYPE_CHECKING:
    from ._wraps import Function


def asyncpg(module: Any) -> list[Wrap]:
    """
    List the functions of asyncpg.
    """
    connection, prepared = module.connection.Connection, module.prepared_stmt.PreparedStatement
    cursors = module.cursor
    of_connection = functools.partial(Wrap, connection=lambda resource: resource._connection)
    # fetchmany came with 0.30.
    many: dict[str, Function] = {"executemany": _asyncpg_executemany, "fetchmany": _asyncpg_fetchmany}
    many = {name: read for name, read in many.items() if hasattr(connection, name)}
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
        *(Wrap(connection, name, STATEMENT, read) for name, read in (many | copies).items()),
        # A text that the server refuses fails here, also before SQLAlchemy executes what it has prepared.
        Wrap(connection, "_get_statement", STATEMENT, _asyncpg_preparation),
        Wrap(connection, "reset", read=lambda *_, **__: None),  # what a pool does to a connection that comes back
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
    try:
        url = urlsplit(dsn or "")
        query = dict(parse_qsl(url.query))
        host, port = host or url.hostname or query.get("host"), port or url.port or query.get("port")
    except ValueError:  # several hosts, each with its port, or no URL
        return Database("postgresql", database, user=user)
    return _database(
        database or unquote(url.path).strip("/"), host, port, user or (url.username and unquote(url.username))
    )


# Most statements come through these two, and a tuple without names is made in half the time.
def _asyncpg_query(connection: Any, query: str, *args: Any, **_: Any) -> tuple[Any, ...]:
    return connection, query, bool(args), 0, False, args


def _asyncpg_prepared(prepared: Any, *args: Any, **_: Any) -> tuple[Any, ...]:
    return prepared._connection, prepared._query, bool(args), 0, False, args


def _asyncpg_executemany(connection: Any, command: str, args: Any, **_: Any) -> Call:
    return Call(connection, command, True, count(args))


def _asyncpg_fetchmany(connection: Any, query: str, args: Any, **_: Any) -> Call:
    return Call(connection, query, True, count(args))


def _asyncpg_preparation(connection: Any, query: str, *_args: Any, **_: Any) -> Call:
    return Call(connection, query, is_preparation=True)


def _asyncpg_prepared_many(prepared: Any, args: Any, **_: Any) -> Call:
    return Call(prepared._connection, prepared._query, True, count(args))


def _asyncpg_cursor(cursor: Any, *_args: Any, **_: Any) -> Call:
    return Call(cursor._connection, cursor._query, bool(cursor._args), values=cursor._args)


def _asyncpg_copy(command: str) -> Function:
    def read(connection: Any, table_name: str, *, schema_name: str | None = None, **_: Any) -> Call:
        names = (_quoted(str(name)) for name in (schema_name, table_name) if name)
        return Call(connection, command.format(".".join(names)))

    return read


def _quoted(name: str) -> str:
    return name if name.isidentifier() else '"{}"'.format(name.replace('"', '""'))


def _asyncpg_copy_query(connection: Any, query: str, *args: Any, **_: Any) -> Call:
    return Call(connection, f"COPY ({query}) TO STDOUT", bool(args), values=args)


def psycopg(module: Any) -> list[Wrap]:
    """
    List the functions of psycopg's async side.
    """
    of_connection = functools.partial(Wrap, kind=STATEMENT, connection=lambda cursor: cursor._conn)
    return [
        Wrap(*connect_function(module), CONNECT, _psycopg_database),
        Wrap(module.AsyncConnection, "_exec_command", TRANSACTION, _psycopg_command),
        *(of_connection(module.AsyncCursor, name, read=_psycopg_query) for name in ("execute", "stream")),
        of_connection(module.AsyncCursor, "copy", read=_psycopg_copy),
        of_connection(module.AsyncCursor, "executemany", read=_psycopg_many),
        of_connection(module.AsyncServerCursor, "execute", read=_psycopg_query),
    ]


def _psycopg_database(_connection_class: Any, conninfo: str = "", **kwargs: Any) -> Database:
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    known = {"host", "port", "dbname", "user"}
    try:
        facts = conninfo_to_dict(conninfo, **{key: value for key, value in kwargs.items() if key in known})
    except ProgrammingError:  # the driver says so itself
        facts = {}
    return _database(facts.get("dbname"), facts.get("host"), facts.get("port"), facts.get("user"))


def _psycopg_query(cursor: Any, query: Any, params: Any = None, **_: Any) -> Call:
    parameterised = has_values(params) and isinstance(query, (str, bytes))
    return Call(cursor._conn, _psycopg_sql(query, cursor), parameterised, values=params)


def _psycopg_copy(cursor: Any, statement: Any, params: Any = None, **_: Any) -> Call:
    return _psycopg_query(cursor, statement, params)


def _psycopg_many(cursor: Any, query: Any, params_seq: Any, **_: Any) -> Call:
    return Call(cursor._conn, _psycopg_sql(query, cursor), isinstance(query, (str, bytes)), count(params_seq))


def _psycopg_command(connection: Any, command: Any, *_args: Any, **_: Any) -> Call:
    return Call(connection, _psycopg_sql(command, connection))


def _psycopg_sql(query: Any, context: Any) -> Any:
    """
    Write down a composed query, which may have values in it, or a template string, with a mark for each of its values.
    """
    try:
        if hasattr(query, "as_string"):
            return query.as_string(context)
        return _template(query, context) if hasattr(query, "interpolations") else query
    except Exception:  # noqa: BLE001 - a value that psycopg cannot write down: it says so itself
        return None


def _template(template: Any, context: Any) -> str:
    parts = [template.strings[0]]
    for item, string in zip(template.interpolations, template.strings[1:], strict=True):
        parts += (_interpolated(item.value, item.format_spec, context), string)
    return "".join(parts)


def _interpolated(value: Any, format_spec: str, context: Any) -> str:
    """
    Write down a name or a part of the query, which psycopg wants marked as such; all else is a value.
    """
    if format_spec == "i" and isinstance(value, str):
        return '"{}"'.format(value.replace('"', '""'))
    if format_spec in ("i", "q"):
        if hasattr(value, "as_string"):
            return str(value.as_string(context))
        if hasattr(value, "interpolations"):
            return _template(value, context)
    return "?"


def _database(namespace: Any, host: Any, port: Any, user: Any) -> Database:
    """
    Say what is known before the server has answered: of several hosts, nothing.
    """
    address = host if isinstance(host, str) and "," not in host else None
    number = int(port) if address and str(port).isdecimal() else None
    if address and address.startswith("/"):
        address, number = postgresql_socket(address, number), None
    return Database("postgresql", namespace or None, address or None, number, user or None)
