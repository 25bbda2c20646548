"""
Name the attributes of a span, in the old conventions, the stable ones or both.

Source: open-telemetry/semantic-conventions v1.44.0, docs/db/. The old names are literals: they will never change, and
the package that has them is private.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from opentelemetry.semconv.attributes.db_attributes import (
    DB_NAMESPACE,
    DB_QUERY_SUMMARY,
    DB_QUERY_TEXT,
    DB_STORED_PROCEDURE_NAME,
    DB_SYSTEM_NAME,
)
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.schemas import Schemas

from ._config import AttributeNames

Attributes = dict[str, Any]

# SQLAlchemy's dialect names to `db.system.name` and to the old `db.system`, where either differs.
_SYSTEM_NAMES = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}
# The stable conventions leave a default port out.
_DEFAULT_PORTS = {
    "cockroachdb": 26257,
    "mariadb": 3306,
    "mssql": 1433,
    "mysql": 3306,
    "oracle": 1521,
    "postgresql": 5432,
    "sqlite": None,
}


class Database(NamedTuple):
    """
    The database that an engine or a connection talks to, as far as it is known without asking it.
    """

    dialect: str
    """
    SQLAlchemy's dialect name.
    """

    namespace: str | None = None
    address: str | None = None
    port: int | None = None
    user: str | None = None

    @property
    def pool_name(self) -> str:
        """
        Return the conventions' default, `server.address:server.port/db.namespace`, of what is known.
        """
        server = ":".join(str(part) for part in (self.address, self.port) if part)
        return "/".join(part for part in (server, self.namespace) if part) or self.system

    @property
    def system(self) -> str:
        """
        Return the `db.system.name`.
        """
        known = self.dialect if self.dialect in _DEFAULT_PORTS else "other_sql"
        return _SYSTEM_NAMES.get(known, known)

    @property
    def span_name(self) -> str:
        """
        Return the name of a span without a summary: the target, where it is neither a path nor anything else at all.
        """
        return self.namespace if self.namespace and re.fullmatch(r"\w+", self.namespace) else self.system


def schema_url(names: AttributeNames) -> str:
    """
    Return the schema that the attribute names are from; the stable ones came with 1.33.0.
    """
    return Schemas.V1_25_0.value if names is AttributeNames.OLD else Schemas.V1_33_0.value


def database_attributes(names: AttributeNames, database: Database) -> Attributes:
    """
    Return the attributes that every span of a database has.
    """
    old = {
        "db.system": database.dialect if database.dialect in _DEFAULT_PORTS else "other_sql",
        "db.name": database.namespace,
        "db.user": database.user,
        "net.peer.name": database.address,
        "net.peer.port": database.port,
        "net.transport": database.address and ("other" if database.address.startswith("/") else "ip_tcp"),
    }
    stable = {
        DB_SYSTEM_NAME: database.system,
        DB_NAMESPACE: database.namespace,
        SERVER_ADDRESS: database.address,
        SERVER_PORT: None if database.port == _DEFAULT_PORTS.get(database.dialect) else database.port,
    }
    return _chosen(names, old, stable)


def metric_attributes(database: Database) -> Attributes:
    """
    Return what metrics say of a database, always under the stable names.
    """
    return database_attributes(AttributeNames.STABLE, database)


def statement_attributes(
    names: AttributeNames, *, operation: str, summary: str, text: str = "", procedure: str = ""
) -> Attributes:
    """
    Return the attributes that every execution of a statement has.
    """
    old = {"db.operation": operation, "db.statement": text}
    stable = {DB_QUERY_SUMMARY: summary, DB_QUERY_TEXT: text, DB_STORED_PROCEDURE_NAME: procedure}
    return _chosen(names, old, stable)


def _chosen(names: AttributeNames, old: Attributes, stable: Attributes) -> Attributes:
    by_names = {AttributeNames.OLD: old, AttributeNames.STABLE: stable, AttributeNames.DUP: old | stable}
    return {key: value for key, value in by_names[names].items() if value not in (None, "")}
