from __future__ import annotations

from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy.engine import make_url

from otel_async_sqla_agent._semconv import Database
from otel_async_sqla_agent._server import connection_database, engine_database, postgresql_socket
from tests.conftest import run


@pytest.mark.parametrize(
    ("database", "options", "namespace"),
    [
        pytest.param("{}/a.db", {}, "{}/a.db", id="path"),
        pytest.param(b"{}/a.db", {}, "{}/a.db", id="bytes"),
        pytest.param(Path("{}/a.db"), {}, "{}/a.db", id="path-object"),
        pytest.param("file:{}/a.db?mode=rwc&key=canary", {"uri": True}, "file:{}/a.db", id="uri"),
        pytest.param(":memory:", {}, None, id="memory"),
        pytest.param("", {}, None, id="temporary"),
    ],
)
def test_aiosqlite(database: Any, options: dict[str, Any], namespace: str | None, tmp_path: Path) -> None:
    """
    aiosqlite's connection knows the path that it was opened with; the query of a URI is left out.
    """
    folder = str(tmp_path)
    if isinstance(database, bytes):
        database = database.decode().replace("{}", folder).encode()
    else:
        database = type(database)(str(database).replace("{}", folder))

    async def main() -> Database | None:
        async with aiosqlite.connect(database, **options) as connection:
            return connection_database(connection)

    assert Database("sqlite", namespace.replace("{}", folder) if namespace else None) == run(main())


def _connection(module: str, **attributes: Any) -> Any:
    """
    Make an object of an application's own class below a driver's.
    """
    return type("Mine", (type("Connection", (), {"__module__": module}),), attributes)()


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        pytest.param(_connection("asyncpg.connection"), Database("postgresql"), id="asyncpg"),
        pytest.param(_connection("aiomysql.connection"), Database("mysql"), id="aiomysql"),
        pytest.param(_connection("asyncmy.connection"), Database("mysql"), id="asyncmy"),
        pytest.param(_connection("aiosqlite.core"), Database("sqlite"), id="aiosqlite"),
        pytest.param(_connection("asyncpg_like"), None, id="another-driver"),
        pytest.param(object(), None, id="no-connection"),
    ],
)
def test_what_a_driver_does_not_tell(connection: Any, expected: Database | None) -> None:
    """
    A version of a driver that hides what we read is known by its class alone, also by a base of it.
    """
    assert expected == connection_database(connection)


@pytest.mark.parametrize(
    ("version", "dialect"), [("8.4.3", "mysql"), ("5.5.5-10.11.19-MariaDB-1", "mariadb"), ("11.4-mariadb", "mariadb")]
)
def test_mariadb_is_no_mysql(version: str, dialect: str) -> None:
    """
    The server's version tells MariaDB from MySQL.
    """
    assert Database(dialect) == connection_database(_connection("aiomysql.connection", server_version=version))


@pytest.mark.parametrize(
    ("host", "port", "path"),
    [
        ("/run/postgresql", None, "/run/postgresql/.s.PGSQL.5432"),
        ("/run/", 6543, "/run/.s.PGSQL.6543"),
        ("/run/.s.PGSQL.1", 5432, "/run/.s.PGSQL.1"),
    ],
)
def test_postgresql_socket(host: str, port: int | None, path: str) -> None:
    """
    A socket's path has the port in it, as PostgreSQL names it.
    """
    assert path == postgresql_socket(host, port)


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        pytest.param("postgresql://u:canary@db:5433/shop", "db", 5433, id="host"),
        pytest.param("postgresql://u:canary@[::1]:5433/shop", "::1", 5433, id="ipv6"),
        pytest.param("postgresql://u:canary@/shop", None, None, id="none"),
        pytest.param("postgresql://u:canary@/shop?host=db&port=5433", "db", 5433, id="query"),
        pytest.param("postgresql://u:canary@/shop?host=db:5433", "db", 5433, id="query-with-port"),
        pytest.param("postgresql://u:canary@/shop?host=::1", "::1", None, id="query-ipv6"),
        pytest.param("postgresql://u:canary@/shop?host=a:1&host=b:2", None, None, id="hosts"),
        pytest.param("postgresql://u:canary@/shop?host=a,b&port=1,2", None, None, id="list-of-hosts"),
        pytest.param("postgresql://u:canary@/shop?host=/run/pg", "/run/pg/.s.PGSQL.5432", None, id="socket"),
        pytest.param("postgresql://u:canary@:5433/shop?host=/run/pg", "/run/pg/.s.PGSQL.5433", None, id="socket-port"),
        pytest.param("mysql://u:canary@/shop?unix_socket=/run/my.sock", "/run/my.sock", None, id="mysql-socket"),
        pytest.param("postgresql://u:p@canary@db/shop", "db", None, id="unquoted-password"),
    ],
)
def test_address_of_a_url(url: str, address: str | None, port: int | None) -> None:
    """
    A URL tells the address, wherever it stands, and nothing of the password.
    """
    parsed = make_url(url)
    database = engine_database(parsed.drivername, parsed, None)
    assert Database(parsed.drivername, "shop", address, port, "u") == database


def test_connection_knows_better() -> None:
    """
    Where a connection leads is told by it; the database's name is the URL's, if that has one.
    """
    found = Database("postgresql", "from_connection", "b", 2, "real")
    url = make_url("postgresql://u@a:1")
    assert Database("cockroachdb", "from_connection", "b", 2, "real") == engine_database("cockroachdb", url, found)
    assert "shop" == engine_database("postgresql", url.set(database="shop"), found).namespace
    unknown = Database("postgresql")
    assert Database("postgresql", None, "a", 1, "u") == engine_database("postgresql", url, unknown)
