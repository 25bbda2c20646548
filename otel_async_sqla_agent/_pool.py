"""
The pool layer: how long one waits for a connection, where it comes from, and who holds the others.

SQLAlchemy's pool events do not tell: `checkin` misses detached connections, and a `checkout` listener forces a slower
path. So three methods are replaced on the instance of each pool, and the wait on the instance of its queue.
"""

from __future__ import annotations

import functools
import weakref
from contextvars import ContextVar, Token
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Status, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.pool import Pool

    from ._guard import Guard
    from ._metrics import Callback, Instruments, Metrics
    from ._statement import StatementCore, Target

# Under these names the layer's state stands in the `__dict__` of a pool and of a checked-out connection.
_STATE = "_otel_async_sqla_pool"
_CHECKOUT = "_otel_async_sqla_checkout"
_POOL_NAME = "db.client.connection.pool.name"
_POOL_STATE = "db.client.connection.state"
_HOLDERS_SHOWN = 5


class Hold(NamedTuple):
    """
    Who holds a connection, and since when on the clock of `perf_counter`.
    """

    since: float
    span_name: str
    span_context: trace.SpanContext


class _Checkout:
    """
    What one `pool.connect()` finds out on its way.
    """

    __slots__ = ("source",)

    def __init__(self) -> None:
        self.source = "idle"


_open_checkout: ContextVar[_Checkout | None] = ContextVar("otel_async_sqla_checkout", default=None)


def _close_checkout(token: Token[_Checkout | None]) -> None:
    try:
        _open_checkout.reset(token)
    except ValueError:  # closed in another context, where nobody has opened it
        pass


def take_checkout(context: Any) -> dict[str, float | str] | None:
    """
    Return what the first statement after a checkout says of it, once.

    Args:
        context: SQLAlchemy's execution context of the statement.
    """
    facts: dict[str, Any] | None = getattr(getattr(context, "_dbapi_connection", None), "__dict__", None)
    return None if facts is None else facts.pop(_CHECKOUT, None)


class PoolRegistry:
    """
    Every live engine's pools by their name, for the observable instruments.

    The callbacks run in the exporter's thread: they read plain numbers, and never call a pool's methods.
    """

    def __init__(self) -> None:
        self._named: weakref.WeakValueDictionary[str, EnginePools] = weakref.WeakValueDictionary()
        self.callbacks: dict[str, Callback] = {
            "count": self._count,
            "idle.max": functools.partial(self._limit, "idle_max"),
            "idle.min": functools.partial(self._limit, "idle_min"),
            "max": functools.partial(self._limit, "maximum"),
            "pending_requests": self._pending,
        }

    def add(self, pools: EnginePools, wanted: str) -> str:
        """
        Name an engine's pools; of engines that want the same name, the later ones get the lowest free suffix.
        """
        name, number = wanted, 1
        while name in self._named:
            number += 1
            name = f"{wanted}#{number}"
        self._named[name] = pools
        return name

    def _count(self, _options: CallbackOptions) -> Iterable[Observation]:
        for name, pools in list(self._named.items()):
            states = list(pools.states)
            yield Observation(sum(state.used for state in states), {_POOL_NAME: name, _POOL_STATE: "used"})
            yield Observation(sum(state.idle for state in states), {_POOL_NAME: name, _POOL_STATE: "idle"})

    def _limit(self, limit: str, _options: CallbackOptions) -> Iterable[Observation]:
        for name, pools in list(self._named.items()):
            value = getattr(pools.limits, limit)
            if value is not None:
                yield Observation(value, {_POOL_NAME: name})

    def _pending(self, _options: CallbackOptions) -> Iterable[Observation]:
        for name, pools in list(self._named.items()):
            yield Observation(sum(state.pending for state in list(pools.states)), {_POOL_NAME: name})


class _Limits(NamedTuple):
    """
    How many connections a pool may have; None where nothing limits it.
    """

    idle_max: int | None
    maximum: int | None
    idle_min: int = 0


def _limits(pool: Any) -> _Limits:
    size = getattr(getattr(pool, "_pool", None), "maxsize", None)
    if size is None:  # no queue: StaticPool keeps one, NullPool none
        return _Limits(1, 1) if hasattr(type(pool), "connection") else _Limits(0, None)
    if size == 0:
        return _Limits(None, None)
    return _Limits(size, None if pool._max_overflow < 0 else size + pool._max_overflow)


class EnginePools:
    """
    The pools of one engine: the one in use, and disposed ones while connections of theirs are out.
    """

    def __init__(self, core: StatementCore, guard: Guard, metrics: Metrics, registry: PoolRegistry) -> None:
        # Not above: the registry is also there in a process that has drivers, but no SQLAlchemy.
        from sqlalchemy.exc import TimeoutError as PoolTimeoutError

        self.timeout_error = PoolTimeoutError
        self.states: weakref.WeakSet[PoolState] = weakref.WeakSet()
        self.guard = guard
        self._core = core
        self._metrics = metrics
        self._registry = registry

    target: Target
    """
    The engine's; it changes with what the first connection tells of the database.
    """

    def open(self, pool: Pool, default_name: str) -> None:
        """
        Begin with the pool that the engine was made with.
        """
        self.limits = _limits(pool)
        self.attributes = {_POOL_NAME: self._registry.add(self, pool.logging_name or default_name)}
        self.wrap(pool)

    def wrap(self, pool: Pool) -> None:
        """
        Watch one pool, once.
        """
        if _STATE not in pool.__dict__:
            state = pool.__dict__[_STATE] = PoolState(self, pool)
            self.states.add(state)

    def unwrap(self) -> None:
        """
        Give every pool its methods back.
        """
        for state in list(self.states):
            state.unwrap()

    def instruments(self) -> Instruments | None:
        """
        Return the instruments, if there are any.
        """
        return self._metrics.instruments()

    def created(self, seconds: float) -> None:
        """
        Record that a real connection has been made.
        """
        if (checkout := _open_checkout.get()) is not None and checkout.source == "idle":
            checkout.source = "new"
        if (instruments := self.instruments()) is not None:
            instruments.create_time.record(seconds, self.attributes)

    def timed_out(self, state: PoolState, start_time: int) -> None:
        """
        Record a request that got no connection, with who holds them.
        """
        if (instruments := self.instruments()) is not None:
            instruments.timeouts.add(1, self.attributes)
        attributes = {**self.target.attributes, **self.attributes, "error.type": "sqlalchemy.exc.TimeoutError"}
        span = self._core.start_internal(self.target, "pool timeout", attributes, start_time)
        if span is not None:
            span.set_status(Status(StatusCode.ERROR, "no connection became free in time"))
            span.add_event("pool exhausted", state.describe())
            span.end()


class PoolState:
    """
    What is known of one pool: which records are out, and which came back with an open connection.
    """

    def __init__(self, pools: EnginePools, pool: Any) -> None:
        self.pending = 0
        self._pools = pools
        self._out: dict[Any, Hold] = {}
        self._back: set[Any] = set()
        self._pool = weakref.ref(pool)
        self._undo: list[Callable[[], None]] = []
        self._replace(pool, "connect", self._connect)
        self._replace(pool, "_do_return_conn", self._return)
        self._replace(pool, "recreate", self._recreate)
        if hasattr(pool, "_pool") and hasattr(pool._pool, "qsize"):
            self._replace(pool._pool, "get", functools.partial(self._get, weakref.ref(pool._pool)))

    @property
    def used(self) -> int:
        """
        Return how many records are checked out.
        """
        return len(self._out)

    @property
    def idle(self) -> int:
        """
        Return how many records are in the pool with an open connection; disposing of the pool closes them.
        """
        return sum(record.dbapi_connection is not None for record in tuple(self._back))

    def describe(self) -> dict[str, Any]:
        """
        Return the attributes of the event that tells who holds the connections.
        """
        now, limits = perf_counter(), self._pools.limits
        holds = sorted(self._out.values(), key=lambda hold: hold.since)[:_HOLDERS_SHOWN]
        return {
            "async_sqla.pool.size": limits.idle_max or 0,
            "async_sqla.pool.overflow": max(0, self.used - (limits.idle_max or 0)),
            "async_sqla.pool.waiters": self.pending,
            "async_sqla.pool.holder.span_names": [hold.span_name for hold in holds],
            "async_sqla.pool.holder.trace_ids": [trace.format_trace_id(hold.span_context.trace_id) for hold in holds],
            "async_sqla.pool.holder.span_ids": [trace.format_span_id(hold.span_context.span_id) for hold in holds],
            "async_sqla.pool.holder.seconds": [now - hold.since for hold in holds],
        }

    def unwrap(self) -> None:
        """
        Give the pool its methods back, where no other tool has put its own over ours.
        """
        for undo in self._undo:
            undo()
        pool = self._pool()
        if pool is not None:
            pool.__dict__.pop(_STATE, None)

    def _replace(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        original, previous = getattr(owner, name), owner.__dict__.get(name)
        wrapper = functools.wraps(original)(functools.partial(method, original))
        setattr(owner, name, wrapper)
        reference = weakref.ref(owner)

        def undo() -> None:
            owner = reference()
            if owner is not None and owner.__dict__.get(name) is wrapper:
                delattr(owner, name) if previous is None else setattr(owner, name, previous)

        self._undo.append(undo)

    def _connect(self, original: Callable[[], Any]) -> Any:
        """
        Stand in for `pool.connect()`, which encloses the wait for the queue, the connect and the ping.
        """
        guard, checkout = self._pools.guard, _Checkout()
        if not guard.active:
            return original()
        started, start_time, token = perf_counter(), time_ns(), _open_checkout.set(checkout)
        try:
            fairy = original()
        except self._pools.timeout_error:
            guard.run(self._pools.timed_out, self, start_time)
            raise
        finally:
            _close_checkout(token)
        guard.run(self._checked_out, fairy, started, checkout.source)
        return fairy

    def _checked_out(self, fairy: Any, started: float, source: str) -> None:
        now, span, record = perf_counter(), trace.get_current_span(), fairy._connection_record
        self._back.discard(record)
        self._out[record] = Hold(now, getattr(span, "name", ""), span.get_span_context())
        fairy.__dict__[_CHECKOUT] = {"async_sqla.pool.wait_time": now - started, "async_sqla.pool.source": source}
        if (instruments := self._pools.instruments()) is not None:
            instruments.wait_time.record(now - started, self._pools.attributes)

    def _return(self, original: Callable[[Any], None], record: Any) -> None:
        """
        Stand in for `pool._do_return_conn()`: the one way back, for detached and invalidated connections too.
        """
        try:
            original(record)
        finally:
            self._pools.guard.run(self._returned, record)

    def _returned(self, record: Any) -> None:
        hold = self._out.pop(record, None)
        if record.dbapi_connection is None:
            self._back.discard(record)
        else:
            self._back.add(record)
        if hold is not None and (instruments := self._pools.instruments()) is not None:
            instruments.use_time.record(perf_counter() - hold.since, self._pools.attributes)

    def _recreate(self, original: Callable[[], Pool]) -> Pool:
        pool = original()
        self._pools.guard.run(self._pools.wrap, pool)
        return pool

    def _get(self, queue: Any, original: Callable[..., Any], block: bool = True, timeout: float | None = None) -> Any:
        """
        Stand in for `get()` of the pool's queue, which blocks where the pool is exhausted.
        """
        if not block or queue().qsize():
            return original(block, timeout)
        if (checkout := _open_checkout.get()) is not None:
            checkout.source = "queued"
        self.pending += 1
        try:
            return original(block, timeout)
        finally:
            self.pending -= 1
