"""
Enclose one call of the application that reaches the database: a *bracket*.

While it is open, the calls that it causes further down (SQLAlchemy's own, the driver's) pass through: each statement
gives one span, made by the outermost bracket.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, NamedTuple, Protocol

from opentelemetry import context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from ._errors import ErrorFacts
    from ._guard import Guard
    from ._metrics import Instruments
    from ._semconv import Attributes
    from ._statement import Target


# What a driver's call is, as bits: which of them nest in a bracket, and make spans of their own there.
STATEMENT, TRANSACTION, CONNECT = 1, 2, 4


class BracketOwner(Protocol):
    """
    Whoever opens brackets: an engine's state, or a driver.
    """

    guard: Guard
    """
    Of its layer.
    """


class UnstartedSpan(NamedTuple):
    """
    A span that may be started afterwards, with its true start.
    """

    since: float
    least: float
    """
    The least seconds that a successful call takes to make one; infinite where only a failure does.
    """

    tracer: Tracer
    name: str
    attributes: Attributes
    parent: Context
    start_time: int


class Bracket:
    """
    One open call.

    The `active` flag is what counts, not the variable: a context that is current while a connection is being made
    lives on in its callbacks and background tasks.

    Args:
        owner: Whose calls pass through: another engine's, below this one's connect, make spans of their own.
    """

    active = True
    batch: object = None
    """
    SQLAlchemy's execution context, where the bracket stays open between calls: only its own calls pass through.
    """

    nests = 0
    """
    The calls of the driver that make spans of their own in this bracket.
    """

    parameterised: bool | None = None
    """
    What the engine knows of the text that its driver is going to execute; None where it is not for the driver.
    """

    more: Attributes | None = None
    """
    What the driver's first statement in this bracket says besides.
    """

    count_rows: Callable[[], int | None] | None = None
    """
    Tells how many rows the statement has returned, if that is wanted.
    """

    span: Span | None = None
    error: ErrorFacts | None = None
    """
    What went wrong in a call further down.
    """

    if_it_fails: tuple[Target, str, int] | None = None
    """
    Target, name and start time of the span that is made only if the call fails.
    """

    if_it_is_slow: UnstartedSpan | None = None
    """
    The span that is made only if the statement fails, or takes long enough.
    """

    measured: tuple[float, Instruments, Attributes, str] | None = None
    """
    Start on the clock of `perf_counter`, the metrics, and what they say: of the database, and the summary.
    """

    attached: Token[Context] | None = None
    """
    What makes the span the current one, until the bracket is closed.
    """

    def __init__(self, owner: BracketOwner) -> None:
        self.owner = owner
        self._outer: Token[Bracket | None] | None = _open_bracket.set(self)

    @property
    def target(self) -> Target | None:
        """
        Return the owner's, if it is an engine.
        """
        return getattr(self.owner, "target", None)

    def encloses(self, owner: object, args: Sequence[object]) -> bool:
        """
        Tell whether a call further down is a part of this one, and makes no span of its own.
        """
        return self.owner is owner and (self.batch is None or bool(args and args[-1] is self.batch))

    def close(self) -> None:
        """
        Make current again what was; the span itself goes on. Closing it again does nothing.
        """
        self.active = False
        outer, self._outer = self._outer, None
        if outer is None:
            return
        try:
            _open_bracket.reset(outer)
        except ValueError:
            return  # closed in another context, in which nothing was attached: the flag is what counts
        if self.attached is not None:
            context.detach(self.attached)


_open_bracket: ContextVar[Bracket | None] = ContextVar("otel_async_sqla_bracket", default=None)
# It may have been closed since.
latest_bracket = _open_bracket.get


def open_bracket() -> Bracket | None:
    """
    Return the open bracket that encloses the current call, if there is one.
    """
    bracket = latest_bracket()
    return bracket if bracket is not None and bracket.active else None
