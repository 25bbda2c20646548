"""
Every live engine's pools by their name: what the observable instruments ask.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, NamedTuple, Protocol

from opentelemetry.metrics import CallbackOptions, Observation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._metrics import Callback

POOL_NAME = "db.client.connection.pool.name"
_POOL_STATE = "db.client.connection.state"


class Counts(NamedTuple):
    """
    How many connections are out and idle, and how many requests wait for one.
    """

    used: int
    idle: int
    pending: int


class Limits(NamedTuple):
    """
    How many connections a pool may have; None where nothing limits it.
    """

    idle_max: int | None
    maximum: int | None
    idle_min: int = 0


class NamedPools(Protocol):
    """
    The pools of one engine.
    """

    name: str
    limits: Limits

    @property
    def active(self) -> bool:
        """
        Tell whether the numbers are right: not if the layer has been switched off.
        """

    def counts(self) -> Counts:
        """
        Return the present numbers; called in the exporter's thread.
        """


class PoolRegistry:
    """
    Names of pools, and the callbacks that tell of them.

    Nothing here keeps an engine alive. Iterating over a weak dictionary is not safe while another thread adds to it, so
    the callbacks ask for all references at once.
    """

    def __init__(self) -> None:
        self._named: weakref.WeakValueDictionary[str, NamedPools] = weakref.WeakValueDictionary()
        self.callbacks: dict[str, Callback] = {
            "count": self._count,
            "idle.max": functools.partial(self._limit, "idle_max"),
            "idle.min": functools.partial(self._limit, "idle_min"),
            "max": functools.partial(self._limit, "maximum"),
            "pending_requests": self._pending,
        }

    def add(self, pools: NamedPools, wanted: str) -> None:
        """
        Name an engine's pools; of engines that want the same name, the later ones get the lowest free suffix.
        """
        pools.name, number = wanted, 1
        while pools.name in self._named:
            number += 1
            pools.name = f"{wanted}#{number}"
        self._named[pools.name] = pools

    def discard(self, pools: NamedPools) -> None:
        """
        Tell no more of an engine's pools, and free their name.
        """
        if self._named.get(pools.name) is pools:
            del self._named[pools.name]

    def _live(self) -> Iterator[NamedPools]:
        for reference in self._named.valuerefs():
            pools = reference()
            if pools is not None and pools.active:
                yield pools

    def _count(self, _options: CallbackOptions) -> Iterable[Observation]:
        for pools in self._live():
            counts = pools.counts()
            yield Observation(counts.used, {POOL_NAME: pools.name, _POOL_STATE: "used"})
            yield Observation(counts.idle, {POOL_NAME: pools.name, _POOL_STATE: "idle"})

    def _limit(self, limit: str, _options: CallbackOptions) -> Iterable[Observation]:
        for pools in self._live():
            value = getattr(pools.limits, limit)
            if value is not None:
                yield Observation(value, {POOL_NAME: pools.name})

    def _pending(self, _options: CallbackOptions) -> Iterable[Observation]:
        for pools in self._live():
            yield Observation(pools.counts().pending, {POOL_NAME: pools.name})


REGISTRY = PoolRegistry()
"""
One for the process: an SDK's meter gives the instrument that it has when one of the same name is made again, after
`uninstrument()` and `instrument()`, and that one has the callbacks of the first time.
"""
