"""
Tell what database a URL, and a driver's own connection, lead to, without asking the server.

A URL does not always know: `async_creator`, `connect_args`, several hosts. What a driver does not tell, as another
version of it may not, is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._semconv import Database

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import URL

POSTGRESQL_PORT = 5432


def engine_database(dialect: str, url: URL, found: Database | None) -> Database:
    """
    Put together what is known of an engine's database, never with the URL's password.

    Args:
        dialect: SQLAlchemy's dialect name.
        url: The engine's URL.
        found: What a connection of it says, once there is one: `connect_args`, a `do_connect` listener and
            `async_creator` may lead elsewhere than the URL.
    """
    address, port = _url_address(dialect, url)
    if found is not None and found.address:
        address, port = found.address, found.port
    found = found or Database(dialect)
    return Database(dialect, url.database or found.namespace, address, port, found.user or url.username)


def _url_address(dialect: str, url: URL) -> tuple[str | None, int | None]:
    """
    Return host and port of a URL; none of several hosts, as it is not known which one will answer.
    """
    host = url.host or url.query.get("host") or url.query.get("unix_socket")
    if not isinstance(host, str) or "," in host:
        return None, None
    # An `@` of a password that is not quoted: SQLAlchemy takes what follows for the host.
    host, port = host.rpartition("@")[2], str(url.port or url.query.get("port", ""))
    if not url.host and host.count(":") == 1:
        host, _, port = host.partition(":")
    number = int(port) if port.isdecimal() else None
    if host.startswith("/"):
        return postgresql_socket(host, number) if dialect == "postgresql" else host, None
    return host or None, number


def connection_database(driver_connection: object) -> Database | None:
    """
    Read the facts of a driver's connection; that of a pool's proxy too, if it passes attributes on.

    Args:
        driver_connection: An open connection.

    Returns:
        None where the driver is not known: it is told by the module of the connection's class, or of a base of it.
    """
    for base in type(driver_connection).__mro__:
        reader = _READERS.get(base.__module__.partition(".")[0])
        if reader is not None:
            return reader(driver_connection)
    return None


def postgresql_socket(host: str, port: int | None) -> str:
    """
    Return the path of a UNIX socket, which libpq and asyncpg are given by its folder.
    """
    return host if ".s.PGSQL." in host else f"{host.rstrip('/')}/.s.PGSQL.{port or POSTGRESQL_PORT}"


def _asyncpg(connection: Any) -> Database:
    parameters = getattr(connection, "_params", None)
    address = getattr(connection, "_addr", None)  # a socket's path, or host and port
    host, port = address if isinstance(address, tuple) else (address, None)
    return Database(
        dialect="postgresql",
        namespace=getattr(parameters, "database", None),
        address=host,
        port=port,
        user=getattr(parameters, "user", None),
    )


def _psycopg(connection: Any) -> Database:
    if connection.closed:  # it would raise
        return Database("postgresql")
    info = connection.info
    host, port = info.host, info.port
    if host.startswith("/"):
        host, port = postgresql_socket(host, port), None
    return Database("postgresql", info.dbname or None, host or info.hostaddr or None, port, info.user or None)


def _mysql(connection: Any) -> Database:
    # aiomysql and asyncmy have the same private names; asyncmy keeps what goes over the wire as bytes.
    version, socket, host, port, database, user = (
        _text(getattr(connection, name, None))
        for name in ("server_version", "_unix_socket", "_host", "_port", "_db", "_user")
    )
    return Database(
        dialect="mariadb" if "mariadb" in str(version).lower() else "mysql",
        namespace=database,
        address=socket or host,
        port=None if socket else port,
        user=user,
    )


def _aiosqlite(connection: Any) -> Database:
    connector = getattr(connection, "_connector", None)  # a closure over the arguments of `connect()`
    names = getattr(getattr(connector, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(connector, "__closure__", None) or (), strict=False))
    path = str(_text(cells["database"].cell_contents) or "") if "database" in cells else ""
    # A URI's query may have a key in it. What has no name is a database of this connection alone.
    path = path.partition("?")[0] if path.startswith("file:") else path
    return Database("sqlite", None if path == ":memory:" else path or None)


def _text(value: Any) -> Any:
    return (value.decode(errors="replace") if isinstance(value, bytes) else value) or None


_READERS: dict[str, Callable[[Any], Database]] = {
    "aiomysql": _mysql,
    "aiosqlite": _aiosqlite,
    "asyncmy": _mysql,
    "asyncpg": _asyncpg,
    "psycopg": _psycopg,
}
