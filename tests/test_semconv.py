from __future__ import annotations

from typing import Any

import pytest

from otel_async_sqla_agent._config import AttributeNames
from otel_async_sqla_agent._semconv import Database, database_attributes


@pytest.mark.parametrize(
    ("database", "stable", "old"),
    [
        pytest.param(
            Database("postgresql", "shop", "::1", 5432, "app"),
            {"db.system.name": "postgresql", "db.namespace": "shop", "server.address": "::1"},
            {"db.system": "postgresql", "db.name": "shop", "db.user": "app",
             "net.peer.name": "::1", "net.peer.port": 5432, "net.transport": "ip_tcp"},
            id="default-port",
        ),
        pytest.param(
            Database("mariadb", address="db", port=3307),
            {"db.system.name": "mariadb", "server.address": "db", "server.port": 3307},
            {"db.system": "mariadb", "net.peer.name": "db", "net.peer.port": 3307, "net.transport": "ip_tcp"},
            id="another-port",
        ),
        pytest.param(
            Database("mysql", address="/run/mysqld.sock"),
            {"db.system.name": "mysql", "server.address": "/run/mysqld.sock"},
            {"db.system": "mysql", "net.peer.name": "/run/mysqld.sock", "net.transport": "other"},
            id="socket",
        ),
        pytest.param(Database("mssql"), {"db.system.name": "microsoft.sql_server"}, {"db.system": "mssql"}, id="mssql"),
        pytest.param(Database("monetdb"), {"db.system.name": "other_sql"}, {"db.system": "other_sql"}, id="unknown"),
    ],
)  # fmt: skip
def test_database_attributes(database: Database, stable: dict[str, Any], old: dict[str, Any]) -> None:
    """
    The same facts stand under the stable names, the old ones, or both.
    """
    found = [database_attributes(names, database) for names in AttributeNames]
    assert [old, stable, old | stable] == found


@pytest.mark.parametrize(
    ("database", "name"),
    [
        pytest.param(Database("postgresql", "shop"), "shop", id="database"),
        pytest.param(Database("sqlite", "/srv/shop.db"), "sqlite", id="path"),
        pytest.param(Database("mysql", "a;b"), "mysql", id="semicolon"),
        pytest.param(Database("mssql"), "microsoft.sql_server", id="nothing"),
    ],
)
def test_span_name(database: Database, name: str) -> None:
    """
    A span without a summary is named after the database, else after the system; never after a path.
    """
    assert name == database.span_name
