from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

from otel_async_sqla_agent._connections import Connections


class Connection:
    """
    A driver's, equal to each other one.
    """

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


def owner(name: str) -> Any:
    return SimpleNamespace(target=name)


def test_owner() -> None:
    """
    An owner is of one connection, the last that was told, and is forgotten with the connection.
    """
    connections, first, second = Connections(), Connection(), Connection()
    connections.add(first, owner("before"))
    connections.add(first, owner("engine"))
    assert "engine" == connections.owner(first).target  # type: ignore[union-attr]
    assert connections.owner(second) is None
    del first
    gc.collect()
    assert {} == connections.owners


def test_proxy() -> None:
    """
    Of a proxy that asyncpg's pool hands out, the connection counts.
    """
    connections, connection = Connections(), Connection()
    connections.add(SimpleNamespace(_con=connection), owner("engine"))
    assert connections.owner(connection) is not None


def test_no_weak_references() -> None:
    """
    A connection that can't be referred to weakly has no owner, and nothing keeps it alive.
    """
    connections = Connections()
    connections.add(1, owner("engine"))
    assert {} == connections.owners
