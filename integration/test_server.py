from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from integration.databases import DRIVERS, driver_url, postgresql_url
from otel_async_sqla_agent._semconv import Database
from otel_async_sqla_agent._server import connection_database, postgresql_socket
from tests.conftest import run
from tests.recording import Recording


@pytest.fixture
def postgresql() -> URL:
    """
    Return the URL of a PostgreSQL, its host a name or the folder of a socket.
    """
    url = make_url(postgresql_url())
    host = url.host or str(url.query["host"])
    return url.set(host=host, query={})


def postgresql_database(url: URL) -> Database:
    assert url.host
    if url.host.startswith("/"):
        return Database("postgresql", url.database, f"{url.host}/.s.PGSQL.5432", None, url.username)
    return Database("postgresql", url.database, url.host, url.port or 5432, url.username)


def connect_arguments(url: URL) -> dict[str, Any]:
    arguments = {"host": url.host, "port": url.port, "user": url.username, "password": url.password}
    return {name: value for name, value in arguments.items() if value}


async def asyncpg_database(**arguments: Any) -> Database | None:
    import asyncpg

    class Connection(asyncpg.Connection):
        pass

    connection = await asyncpg.connect(connection_class=Connection, **arguments)
    try:
        return connection_database(connection)
    finally:
        await connection.close()


async def psycopg_database(**arguments: Any) -> Database | None:
    import psycopg

    arguments["dbname"] = arguments.pop("database", None)
    for name in ("host", "port"):
        if isinstance(arguments.get(name), list):
            arguments[name] = ",".join(map(str, arguments[name]))
    async with await psycopg.AsyncConnection.connect(**arguments) as connection:
        return connection_database(connection)


@pytest.mark.parametrize("read", [asyncpg_database, psycopg_database])
def test_postgresql(read: Callable[..., Any], postgresql: URL) -> None:
    """
    The PostgreSQL drivers tell the host that the connection was made to, its port, the database and the user.
    """
    found = run(read(database=postgresql.database, **connect_arguments(postgresql)))
    assert postgresql_database(postgresql) == found


@pytest.mark.parametrize("read", [asyncpg_database, psycopg_database])
def test_several_hosts(read: Callable[..., Any], postgresql: URL) -> None:
    """
    Of several hosts the one that answered is told.
    """
    arguments = connect_arguments(postgresql)
    arguments["host"], arguments["port"] = ["/nowhere", arguments["host"]], [5432, arguments.get("port", 5432)]
    assert postgresql_database(postgresql) == run(read(database=postgresql.database, **arguments))


@pytest.mark.parametrize("read", [asyncpg_database, psycopg_database])
def test_postgresql_by_socket(read: Callable[..., Any], postgresql: URL) -> None:
    """
    A UNIX socket is told by its path, with the port in it and nowhere else.
    """
    arguments = connect_arguments(postgresql)
    folder = next((folder for folder in (str(postgresql.host), "/var/run/postgresql", "/tmp") if _socket(folder)), "")
    if not folder:
        pytest.skip("the PostgreSQL of TEST_POSTGRES_URL has no socket on this machine")
    arguments["host"] = folder
    expected = postgresql_database(postgresql.set(host=folder))
    assert expected == run(read(database=postgresql.database, **arguments))


def _socket(folder: str) -> bool:
    return os.path.exists(f"{folder}/.s.PGSQL.5432")


async def mysql_connection(driver: str, **arguments: Any) -> Database | None:
    module = importlib.import_module(driver)
    connection = await module.connect(**arguments)
    try:
        return connection_database(connection)
    finally:
        await connection.ensure_closed()


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
def test_mysql(driver: str) -> None:
    """
    The MySQL drivers tell the host, the port, the database, the user, and MariaDB from MySQL.
    """
    url = driver_url(driver)
    found = run(mysql_connection(driver, db=url.database, **connect_arguments(url)))
    assert found in [
        Database(dialect, url.database, url.host, url.port or 3306, url.username) for dialect in ("mysql", "mariadb")
    ]


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
def test_mysql_by_socket(driver: str) -> None:
    """
    A UNIX socket is told by its path, without the host and port that the drivers have by default.
    """
    url, socket = driver_url(driver), "/run/mysqld/mysqld.sock"
    if not os.path.exists(socket):
        pytest.skip("the MySQL of TEST_MYSQL_URL has no socket on this machine")
    arguments = connect_arguments(url.set(host=None, port=None))
    found = run(mysql_connection(driver, unix_socket=socket, db=url.database, **arguments))
    assert found is not None
    assert (url.database, socket, None, url.username) == found[1:]


def _engines(url: URL) -> dict[str, Any]:
    """
    Return what makes an engine to the same database, by ways that a URL's host has no part in.
    """
    driver = url.get_driver_name()
    module = importlib.import_module(driver)
    database = {"asyncpg": "database", "psycopg": "dbname"}.get(driver, "db")
    connect = module.AsyncConnection.connect if driver == "psycopg" else module.connect
    creator = functools.partial(connect, **{**connect_arguments(url), database: url.database})
    bare = url.set(host=None, port=None)
    ways = {
        "connect_args": (bare, {"connect_args": {"host": url.host, **({"port": url.port} if url.port else {})}}),
        "query": (bare.set(query={"host": str(url.host)}), {}),
    }
    if not sqlalchemy.__version__.startswith("1."):
        ways["async_creator"] = (URL.create(url.drivername), {"async_creator": creator})
        if driver in ("asyncpg", "psycopg") and not str(url.host).startswith("/"):
            ways["hosts"] = (bare.set(query={"host": ("127.0.0.1:1", f"{url.host}:{url.port or 5432}")}), {})
    return ways


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if driver != "aiosqlite"])
def test_engine_without_a_host_in_its_url(driver: str, agent: Any, recording: Recording) -> None:
    """
    Wherever the host stands, a statement's span says it.
    """
    url = driver_url(driver)
    if not url.host:
        url = url.set(host=str(url.query["host"]), query={})
    agent(spans="statement")

    async def select_one(address: URL, options: dict[str, Any]) -> None:
        engine = create_async_engine(address, **options)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        await engine.dispose()

    ways = _engines(url)
    for address, options in ways.values():
        run(select_one(address, options))
    host = str(url.host)
    expected = {
        "db.namespace": url.database,
        "server.address": postgresql_socket(host, None) if host.startswith("/") else host,
        "server.port": url.port if url.port not in (3306, 5432) else None,
    }
    assert [(way, expected) for way in ways] == [
        (way, {key: span.attributes.get(key) for key in expected})
        for way, span in zip(ways, recording.ended, strict=True)
    ]
    assert {span.attributes["db.system.name"] for span in recording.ended} <= {"postgresql", "mysql", "mariadb"}
