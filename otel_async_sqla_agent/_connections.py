"""
Know an engine's driver connections, and what is said of those that the application has opened itself.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ._statement import Target


class Owner(Protocol):
    """
    Whoever knows which database a connection leads to: an engine's state, or the connection's own facts.
    """

    @property
    def target(self) -> Target:
        """
        Return where spans go, and what all of them say.
        """


class EngineTarget:
    """
    What an engine says of its connections, which may outlive it: nothing here keeps the engine alive.
    """

    target: Target


class Connections:
    """
    Owners by driver connection; nothing here keeps a connection alive.

    By its identity: each statement asks, and a `WeakKeyDictionary` would make a reference each time.
    """

    def __init__(self) -> None:
        self.owners: dict[int, tuple[Owner, weakref.ref[Any]]] = {}

    def add(self, connection: Any, owner: Owner) -> None:
        """
        Tell whose connection it is.
        """
        # An `async_creator` may take the connection out of asyncpg's own pool, which hands out proxies.
        connection = getattr(connection, "_con", None) or connection
        key, owners = id(connection), self.owners
        try:
            # Forgotten before another object can have the same identity.
            owners[key] = owner, weakref.ref(connection, lambda _: owners.pop(key, None))
        except TypeError:  # a driver's connection without weak references; none of those in the table is
            pass

    def owner(self, connection: Any) -> Owner | None:
        """
        Return whose connection it is; None while nobody has told.
        """
        owned = self.owners.get(id(connection))
        return None if owned is None else owned[0]
