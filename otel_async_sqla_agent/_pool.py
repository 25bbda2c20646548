"""
The pool layer: how long one waits for a connection, where it comes from, and who holds the others.

SQLAlchemy's pool events do not tell: `checkin` misses detached connections, and a `checkout` listener forces a slower
path. So three methods are replaced on the instance of each pool, and the wait on the instance of its queue.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.trace import Status, StatusCode
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, StaticPool

from ._pool_queue import PoolQueue
from ._pools import POOL_NAME, REGISTRY, Counts, Limits
from ._statement import is_suppressed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.context import Context
    from sqlalchemy.pool import Pool

    from ._guard import Guard
    from ._metrics import Instruments, Metrics
    from ._semconv import Attributes
    from ._statement import StatementCore, Target

    # Since when a connection is out, on the clock of `perf_counter`; the context of the checkout; and SQLAlchemy's weak
    # reference to what the application holds. A tuple, because one is made for each checkout.
    Hold = tuple[float, Context, Callable[[], object]]

# Under these names the layer's state stands in the `__dict__` of a pool and of a checked-out connection.
_STATE = "_otel_async_sqla_pool"
_CHECKOUT = "_otel_async_sqla_checkout"
_HOLDERS_SHOWN = 5

# A connect may wait for the pool of another engine; the time-out is that pool's alone.
_told_timeouts: weakref.WeakSet[PoolTimeoutError] = weakref.WeakSet()


def take_checkout(execution_context: Any) -> Attributes | None:
    """
    Return what the first statement after a checkout says of it, once.

    Args:
        execution_context: SQLAlchemy's, of the statement.
    """
    fairy = getattr(execution_context, "_dbapi_connection", None)
    found = None if fairy is None else getattr(fairy, "__dict__", {}).pop(_CHECKOUT, None)
    return found and {"async_sqla.pool.wait_time": found[0], "async_sqla.pool.source": found[1]}


class EnginePools:
    """
    The pools of one engine: the one in use, and disposed ones while connections of theirs are out.

    Engines that share a pool share this, too.
    """

    name = ""
    target: Target
    """
    The engine's; it changes with what the first connection tells of the database.
    """

    def __init__(self, core: StatementCore, guard: Guard, metrics: Metrics) -> None:
        self.guard = guard
        self._metrics = metrics
        self.late_use_times: deque[float] = deque()
        """
        Seconds of holds that the garbage collector has ended.
        """
        self._core = core
        self._states: list[weakref.ref[PoolState]] = []

    @staticmethod
    def of(pool: Pool) -> EnginePools | None:
        """
        Return what a pool belongs to; None while nobody watches it.
        """
        state: PoolState | None = pool.__dict__.get(_STATE)
        return None if state is None else state.pools

    def open(self, pool: Pool, default_name: str) -> None:
        """
        Begin with the pool that the engine was made with.
        """
        if not self.name:
            self.limits = _limits(pool)
            REGISTRY.add(self, pool.logging_name or default_name)
            self.attributes = {POOL_NAME: self.name}
            self.wrap(pool)

    def wrap(self, pool: Pool) -> None:
        """
        Watch one pool, once.
        """
        if _STATE not in pool.__dict__:
            state = pool.__dict__[_STATE] = PoolState(self, pool)
            # A new list: the exporter's thread may be reading the old one.
            self._states = [reference for reference in self._states if reference() is not None] + [weakref.ref(state)]

    def unwrap(self) -> None:
        """
        Give every pool its methods back, and tell no more of them.
        """
        REGISTRY.discard(self)
        for state in self._live_states():
            state.unwrap()

    @property
    def active(self) -> bool:
        """
        Tell whether the pools are watched: a layer that has failed too often counts no more.
        """
        return self.guard.active

    def counts(self) -> Counts:
        """
        Return the present numbers, of plain attributes: some methods of a pool make an asyncio queue.
        """
        states = self._live_states()
        return Counts(
            sum(state.used for state in states),
            sum(state.idle for state in states),
            sum(state.queue.pending for state in states),
        )

    def instruments(self) -> Instruments | None:
        """
        Return the instruments; None while nothing would come of them, or nothing is wanted.
        """
        instruments = self._metrics.instruments()
        return None if instruments is None or is_suppressed(context.get_current()) else instruments

    def created(self, seconds: float) -> None:
        """
        Record that a real connection has been made.
        """
        if (instruments := self.instruments()) is not None:
            instruments.create_time.record(seconds, self.attributes)

    def obtained(self, instruments: Instruments, seconds: float, current: Context) -> None:
        """
        Record a checkout, and the returns before it that could not be recorded when they happened.
        """
        instruments.wait_time.record(seconds, self.attributes, current)
        while self.late_use_times:
            instruments.use_time.record(self.late_use_times.popleft(), self.attributes)

    def timed_out(self, state: PoolState, error: PoolTimeoutError, started: float) -> None:
        """
        Record a request that got no connection, with who holds them.
        """
        if error in _told_timeouts:
            return
        _told_timeouts.add(error)
        if (instruments := self.instruments()) is not None:
            instruments.timeouts.add(1, self.attributes)
        start_time = time_ns() - int((perf_counter() - started) * 1e9)
        attributes = {**self.target.attributes, **self.attributes, "error.type": "sqlalchemy.exc.TimeoutError"}
        span = self._core.start_internal(self.target, "pool timeout", attributes, start_time)
        if span is not None:
            span.set_status(Status(StatusCode.ERROR, "no connection became free in time"))
            span.add_event("pool exhausted", state.describe())
            span.end()

    def _live_states(self) -> list[PoolState]:
        return [state for reference in self._states if (state := reference()) is not None]


class PoolState:
    """
    What is known of one pool: which records are out, and which have a connection.
    """

    def __init__(self, pools: EnginePools, pool: Any) -> None:
        self.pools = pools
        self._guard = pools.guard  # asked without a call: each checkout does
        self._out: dict[Any, Hold] = {}
        self._known: dict[Any, float] = {record: record.starttime for record in _idle_records(pool)}
        """
        Records of the pool, out or idle, with the start of the connection that they have had here.
        """
        self.queue = PoolQueue()
        self._has_queue = isinstance(pool, QueuePool)
        self._pool = pool
        self._replaced: list[tuple[Any, str, object, object]] = []
        self._replace(pool, "connect", self._connect)
        self._replace(pool, "_do_return_conn", self._return)
        self._replace(pool, "recreate", self._recreate)
        if self._has_queue:
            self._replace(pool._pool, "get", functools.partial(self.queue.get, pool._pool))

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
        return sum(record.dbapi_connection is not None and record not in self._out for record in list(self._known))

    def describe(self) -> dict[str, Any]:
        """
        Return the attributes of the event that tells who holds the connections.
        """
        now, size = perf_counter(), self.pools.limits.idle_max or 0
        holds = sorted(self._out.values(), key=lambda hold: hold[0])[:_HOLDERS_SHOWN]
        spans = [trace.get_current_span(current) for _, current, _ in holds]
        ids = [span.get_span_context() for span in spans]
        return {
            "async_sqla.pool.size": size,
            "async_sqla.pool.overflow": max(0, getattr(self._pool, "_overflow", 0)),
            "async_sqla.pool.waiters": self.queue.pending,
            "async_sqla.pool.holder.span_names": [getattr(span, "name", "") for span in spans],
            "async_sqla.pool.holder.trace_ids": [trace.format_trace_id(each.trace_id) for each in ids],
            "async_sqla.pool.holder.span_ids": [trace.format_span_id(each.span_id) for each in ids],
            "async_sqla.pool.holder.seconds": [now - since for since, _, _ in holds],
        }

    def unwrap(self) -> None:
        """
        Give the pool its methods back, where no other tool has put its own over ours.
        """
        for owner, name, wrapper, previous in self._replaced:
            if owner.__dict__.get(name) is wrapper:
                delattr(owner, name) if previous is None else setattr(owner, name, previous)
        self._pool.__dict__.pop(_STATE, None)

    def _replace(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        original, previous = getattr(owner, name), owner.__dict__.get(name)
        wrapper = functools.wraps(original)(functools.partial(method, original))
        setattr(owner, name, wrapper)
        self._replaced.append((owner, name, wrapper, previous))

    def _connect(self, original: Callable[[], Any]) -> Any:
        """
        Stand in for `pool.connect()`, which encloses the wait for the queue, the connect and the ping.
        """
        started = perf_counter()
        try:
            fairy = original()
        except PoolTimeoutError as error:
            self.pools.guard.run(self.pools.timed_out, self, error, started)
            raise
        if self._guard.active:
            try:
                self._checked_out(fairy, started)
            except Exception as error:  # noqa: BLE001 - ours
                self._guard.failed(error)
        return fairy

    def _checked_out(self, fairy: Any, started: float) -> None:
        now, current, record = perf_counter(), context.get_current(), fairy._connection_record
        if record is not None:  # else a listener has detached it by now
            fairy.__dict__[_CHECKOUT] = now - started, self._source(record)
            # StaticPool gives a record to several; it comes back once, and has been out since the first of them.
            self._out.setdefault(record, (now, current, record.fairy_ref))
        if (instruments := self.pools.instruments()) is not None:
            self.pools.obtained(instruments, now - started, current)

    def _source(self, record: Any) -> str:
        """
        Tell where a connection comes from, and remember it.
        """
        is_new = self._known.get(record) != record.starttime
        if is_new:
            self._learn(record)
        if record in self.queue.waited:
            self.queue.waited.discard(record)
            return "queued"
        return "new" if is_new else "idle"

    def _learn(self, record: Any) -> None:
        """
        Remember a connection that has been made, and forget what has left the pool without a word.
        """
        for known in list(self._known):
            if known not in self._out and (known.dbapi_connection is None or not self._has_queue):
                self._known.pop(known, None)
        self._known[record] = record.starttime

    def _return(self, original: Callable[[Any], None], record: Any) -> None:
        """
        Stand in for `pool._do_return_conn()`: the one way back, for detached and invalidated connections too.
        """
        in_pool = False
        try:
            original(record)
            in_pool = True
        finally:
            if self._guard.active:
                try:
                    self._returned(record, in_pool)
                except Exception as error:  # noqa: BLE001 - ours
                    self._guard.failed(error)

    def _returned(self, record: Any, in_pool: bool) -> None:
        hold = self._out.pop(record, None)
        self.queue.waited.discard(record)  # if its checkout has failed
        if in_pool and record.dbapi_connection is not None:
            self._known.setdefault(record, record.starttime)
        else:
            self._known.pop(record, None)
        if hold is None or (instruments := self.pools.instruments()) is None:
            return
        since, _, fairy_ref = hold
        seconds = perf_counter() - since
        if fairy_ref() is None:
            # The garbage collector is at work, perhaps inside of the SDK, which holds the lock that `record()` needs.
            self.pools.late_use_times.append(seconds)
        else:
            instruments.use_time.record(seconds, self.pools.attributes)

    def _recreate(self, original: Callable[[], Pool]) -> Pool:
        pool = original()
        self.pools.guard.run(self.pools.wrap, pool)
        return pool


def _idle_records(pool: Any) -> Iterable[Any]:
    """
    Return the records that came back to a pool before it was watched.
    """
    if isinstance(pool, QueuePool):
        queue = pool._pool.__dict__.get("_queue")  # asyncio's, which is made when it is first used
        return tuple(getattr(queue, "_queue", ()))
    record: Any = pool._conn if isinstance(pool, AssertionPool) else pool.__dict__.get("connection")  # StaticPool's
    return () if record is None or record.fairy_ref is not None else (record,)


def _limits(pool: Any) -> Limits:
    if isinstance(pool, NullPool):
        return Limits(0, None)
    if isinstance(pool, (StaticPool, AssertionPool)):
        return Limits(1, 1)
    size = pool._pool.maxsize if isinstance(pool, QueuePool) else 0
    if size == 0:
        return Limits(None, None)
    return Limits(size, None if pool._max_overflow < 0 else size + pool._max_overflow)
