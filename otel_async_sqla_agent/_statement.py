"""
Make the span of a statement: what every layer shares.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from time import perf_counter, time_ns
from typing import TYPE_CHECKING

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.semconv.attributes.db_attributes import DB_OPERATION_BATCH_SIZE, DB_QUERY_SUMMARY
from opentelemetry.trace import Span, SpanKind, Tracer

from ._bracket import UnstartedSpan
from ._config import Capture, Config, Sdk, SpanType
from ._errors import ErrorFacts, error_attributes, error_facts, record_error
from ._facts import FactsReader, Statement, StatementFacts, parameter_attributes
from ._sdk import SdkOptIn, known_sampler
from ._semconv import Attributes, Database, database_attributes, metric_attributes, statement_attributes
from ._sql import READ_LIMIT

if TYPE_CHECKING:
    from ._bracket import Bracket
    from ._metrics import Instruments, Metrics

_logger = logging.getLogger("otel_async_sqla_agent")

# What OpenTelemetry's `suppress_instrumentation()` sets. Asking `is_instrumentation_enabled()` takes three look-ups of
# the context, and one is at hand.
_SUPPRESSED = "suppress_instrumentation"
_SUPPRESSED_BY_SDK = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", _SUPPRESSED)
DB_RESPONSE_RETURNED_ROWS = "db.response.returned_rows"  # not stable yet
# What stands for the facts of a text that has not been read.
_UNREAD = StatementFacts("", {}, False, "")


@dataclass(frozen=True, slots=True)  # faster to read from than a tuple with names
class Target:
    """
    Where spans of one engine or connection go, and what all of them say.
    """

    tracer: Tracer
    system: str
    """
    `db.system.name`.
    """

    attributes: Attributes
    metric_attributes: Attributes
    name: str
    """
    The name of a span of a statement that has no summary.
    """

    sampler: object | None
    """
    The tracer's, if it is known to keep the attributes that a span is started with: it takes time to look.
    """


class StatementCore:
    """
    Start and end spans, as the configuration says.

    Only `close()` catches what goes wrong: whoever calls the rest gives it to the guard of its layer.

    Args:
        config: What the environment says.
        metrics: The instruments.
        global_provider: Whether spans go to the global TracerProvider, which may not be set yet.
    """

    def __init__(self, config: Config, metrics: Metrics, *, global_provider: bool) -> None:
        self.config = config
        self._metrics = metrics
        self._min_duration = config.min_duration_ms / 1000
        self._statements = SpanType.STATEMENT in config.spans
        self._captures_parameters = Capture.PARAMETERS in config.capture
        self._facts = FactsReader(config)
        self._recent_facts = self._facts.recent
        self._needs_facts = config.exclude is not None or config.min_duration_ms > 0
        self._provider_checked = not global_provider
        self._wants_all = self._provider_checked and not config.require_parent
        self.before_connect = SdkOptIn(wanted=config.sdk is Sdk.AUTO and global_provider)

    def target(self, tracer: Tracer, database: Database) -> Target:
        """
        Compute what all spans of an engine or connection have in common.
        """
        return Target(
            tracer,
            database.system,
            database_attributes(self.config.attribute_names, database),
            metric_attributes(database),
            database.span_name,
            known_sampler(tracer),
        )

    def start_statement(
        self,
        bracket: Bracket,
        target: Target,
        sql: object,
        parameterised: bool,
        batch_size: int,
        values: object,
        more: Attributes | None,
        *,
        skip: bool = False,
        measure: bool = True,
        only_if_it_fails: bool = False,
    ) -> None:
        """
        Start the span of a statement and make it the current one.

        Args:
            bracket: The bracket that encloses the call.
            target: The database that is talked to.
            sql: The text that the driver is given; what is not a `str` (a mock, a driver's own object) gives no text.
            parameterised: Whether the values are apart from the text.
            batch_size: Parameter sets of an executemany, else 0.
            values: The parameters of a single execution.
            more: Attributes of this execution.
            skip: Whether the application wants no span of it.
            measure: Whether the duration is recorded here, and not by the layer above.
            only_if_it_fails: Whether the call makes a span, and is measured, only if it fails.
        """
        parent = context.get_current()
        instruments = self._metrics.instruments() if measure else None
        # As `is_suppressed()`, without the call.
        if not (instruments or self._statements) or parent.get(_SUPPRESSED) or parent.get(_SUPPRESSED_BY_SDK):
            return
        text = sql if isinstance(sql, str) else ""
        statement = (text, parameterised, batch_size > 1, target.system)
        facts = None
        if len(text) <= READ_LIMIT:  # a longer one is not remembered, and it would take time to hash all of it
            facts = self._recent_facts.get(statement) or self._facts.older(statement)
        facts = facts or self._read(statement, parent, instruments)
        if instruments:
            bracket.measured = (perf_counter(), instruments, target.metric_attributes, facts.metric_summary)
        if skip or facts.excluded or not self._statements or not (self._wants_all or self._wanted(parent)):
            return
        attributes = {**target.attributes, **facts.attributes}
        if batch_size > 1:
            attributes[DB_OPERATION_BATCH_SIZE] = batch_size
        elif self._captures_parameters and values is not None:
            attributes.update(parameter_attributes(values, self.config.query_max_length))
        if more:
            attributes.update(more)
        if only_if_it_fails or self._min_duration:
            least = math.inf if only_if_it_fails else self._min_duration
            bracket.if_it_is_slow = UnstartedSpan(
                perf_counter(), least, target.tracer, facts.name or target.name, attributes, parent, time_ns()
            )
            return
        span = target.tracer.start_span(facts.name or target.name, parent, SpanKind.CLIENT, attributes)
        if target.sampler is None or target.sampler is not target.tracer.sampler:  # type: ignore[attr-defined]
            _set_dropped(span, attributes)
        bracket.span = span
        bracket.attached = context.attach(trace.set_span_in_context(span, parent))
        if facts is _UNREAD and span.is_recording():  # a sampler that does not ask the parent
            facts = self._facts.read(statement)
            span.update_name(facts.name or target.name)
            span.set_attributes(facts.attributes)

    def start_call(
        self, bracket: Bracket, target: Target, name: str, *, current: bool = False, start_time: int | None = None
    ) -> None:
        """
        Start the span of a call that is no statement (`connect`, `COMMIT`).

        Args:
            bracket: The bracket that encloses the call.
            target: The database that is talked to.
            name: The span's name.
            current: Whether to make it the current one.
            start_time: Nanoseconds since the epoch, where the call has begun before; else None.
        """
        parent = context.get_current()
        if is_suppressed(parent) or not self._wanted(parent):
            return
        operation = "" if name == "connect" else name
        attributes = target.attributes | statement_attributes(
            self.config.attribute_names, operation=operation, summary=name
        )
        span = _start_span(target.tracer, name, attributes, parent, start_time)
        bracket.span = span
        if current:
            bracket.attached = context.attach(trace.set_span_in_context(span, parent))

    def start_transaction(self, bracket: Bracket, target: Target, name: str) -> None:
        """
        Start the span of transaction control, if the configuration asks for it; else make one only if it fails.
        """
        if SpanType.TRANSACTION in self.config.spans:
            self.start_call(bracket, target, name, current=True)
        elif self.config.spans:
            bracket.if_it_fails = (target, name, time_ns())

    def start_internal(self, target: Target, name: str, attributes: Attributes, start_time: int) -> Span | None:
        """
        Start the span of something that does not reach the database, which has begun before.

        Returns:
            None where the configuration or the current context leaves it out.
        """
        parent = context.get_current()
        if not self.config.spans or is_suppressed(parent) or not self._wanted(parent):
            return None
        return target.tracer.start_span(name, parent, SpanKind.INTERNAL, attributes, start_time=start_time)

    def close(self, bracket: Bracket, error: BaseException | None) -> None:
        """
        Close a bracket, end its span and record its duration; never raises an `Exception`.

        A span that is open ends also where the owner's layer has been switched off since.

        Args:
            bracket: The bracket, of any kind.
            error: What the call raised, if it did.
        """
        facts = rows = None
        try:
            try:
                if error is not None:
                    facts = error_facts(error) or bracket.error
                elif bracket.count_rows is not None:
                    rows = bracket.count_rows()
            except Exception as failure:  # noqa: BLE001 - the span is made all the same
                bracket.owner.guard.failed(failure)
            if bracket.span is None:
                self._start_late(bracket, facts)
            if bracket.measured is not None or rows is not None:
                self._record(bracket, facts, rows)
        except Exception as failure:  # noqa: BLE001
            bracket.owner.guard.failed(failure)
        finally:
            bracket.close()
        try:
            if bracket.span is not None:
                if facts is None:
                    bracket.span.end()
                else:
                    end_span(bracket.span, facts)
        except Exception as failure:  # noqa: BLE001
            bracket.owner.guard.failed(failure)
        finally:
            # A connection's callbacks keep the bracket of its connect; they are not to keep the engine.
            del bracket.owner

    def _start_late(self, bracket: Bracket, error: ErrorFacts | None) -> None:
        """
        Start the span that waited for the call's end, if the call took long enough or failed.
        """
        late = bracket.if_it_is_slow
        if late is not None and (error is not None or perf_counter() - late.since >= late.least):
            bracket.span = _start_span(late.tracer, late.name, late.attributes, late.parent, late.start_time)
        if bracket.if_it_fails is not None and error is not None:
            target, name, start_time = bracket.if_it_fails
            self.start_call(bracket, target, name, start_time=start_time)

    def _record(self, bracket: Bracket, error: ErrorFacts | None, rows: int | None) -> None:
        """
        Record the duration of a statement, and how many rows it has returned, while its span is still the current one.
        """
        if rows is not None and bracket.span is not None:
            bracket.span.set_attribute(DB_RESPONSE_RETURNED_ROWS, rows)
        late, measured = bracket.if_it_is_slow, bracket.measured
        if measured is None or (error is None and late is not None and late.least == math.inf):
            return
        started, instruments, database, summary = measured
        attributes = {**database, DB_QUERY_SUMMARY: summary} if summary else dict(database)
        if error is not None:
            attributes.update(error_attributes(error))
        # A span that has been made only now is not the current one, and never was.
        current = None if late is None or bracket.span is None else trace.set_span_in_context(bracket.span, late.parent)
        instruments.duration.record(perf_counter() - started, attributes, current)
        if rows is not None:
            instruments.returned_rows.record(rows, attributes, current)

    def _read(self, statement: Statement, parent: Context, instruments: Instruments | None) -> StatementFacts:
        """
        Read a text that is not known, unless it is not worth while: its span is not going to be recorded.

        One that is going to be known from now on is read for the metric all the same.
        """
        caller = trace.get_current_span(parent).get_span_context()
        is_unsampled = caller.is_valid and not caller.trace_flags.sampled
        if is_unsampled and not self._needs_facts and (instruments is None or len(statement[0]) > READ_LIMIT):
            return _UNREAD
        return self._facts.read(statement)

    def _wanted(self, parent: Context) -> bool:
        if not self._provider_checked:
            self._check_provider()
        return not self.config.require_parent or trace.get_current_span(parent).get_span_context().is_valid

    def _check_provider(self) -> None:
        """
        Warn once where the spans go nowhere; a provider that comes later is used all the same.
        """
        self._provider_checked = True
        self._wants_all = not self.config.require_parent
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            _logger.warning(
                "no TracerProvider is set, so the spans of async engines go nowhere for now; run the program with "
                "`opentelemetry-instrument`, or call opentelemetry.trace.set_tracer_provider()"
            )


def end_span(span: Span, error: ErrorFacts | None) -> None:
    """
    End a span, with what went wrong if something did.
    """
    try:
        if error is not None and span.is_recording():
            record_error(span, error)
    finally:
        span.end()


def is_suppressed(parent: Context) -> bool:
    """
    Tell whether the application, or an exporter, wants no telemetry now.
    """
    return bool(parent.get(_SUPPRESSED) or parent.get(_SUPPRESSED_BY_SDK))


def _start_span(
    tracer: Tracer, name: str, attributes: Attributes, parent: Context, start_time: int | None = None
) -> Span:
    span = tracer.start_span(name, parent, SpanKind.CLIENT, attributes, start_time=start_time)
    _set_dropped(span, attributes)
    return span


def _set_dropped(span: Span, attributes: Attributes) -> None:
    """
    Set attributes that the sampler has dropped.

    It decides which ones a span begins with, and the SDK's composite samplers drop all of them. One key tells: it
    stands in every span of ours.
    """
    if span.is_recording() and next(iter(attributes)) not in getattr(span, "attributes", attributes):
        span.set_attributes(attributes)
