"""
Zero-code OpenTelemetry spans for SQLAlchemy's asyncio extension.

Run a program under `opentelemetry-instrument`, or call `instrument()` before or after its engines are made.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from ._config import Mode as Mode
    from ._instrumentor import AsyncSQLAlchemyInstrumentor as AsyncSQLAlchemyInstrumentor

    __version__: str

__all__ = ["AsyncSQLAlchemyInstrumentor", "Mode", "__version__", "instrument", "uninstrument"]


def instrument(
    *,
    mode: Mode | str | None = None,
    spans: Iterable[str] | str | None = None,
    query_text: str | None = None,
    query_max_length: int | None = None,
    capture: Iterable[str] | str | None = None,
    min_duration_ms: float | None = None,
    require_parent: bool | None = None,
    exclude: str | None = None,
    metrics: bool | None = None,
    sdk: str | None = None,
    flush_on_exit: bool | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """
    Instrument every async engine of this process: those that exist, and those that will be made.

    Each option is the environment variable `OTEL_ASYNC_SQLA_<NAME>`; one that is given wins over the environment,
    and a bad value warns and leaves the default. Calling it again changes nothing until `uninstrument()`.

    Args:
        mode: `auto`, `engine`, `driver`, `both` or `off`.
        spans: Which calls make spans: `statement`, `connect`, `transaction`; or `none`.
        query_text: `auto`, `masked`, `raw` or `off`.
        query_max_length: The most characters of SQL text in a span.
        capture: What a span says besides: `parameters`, `rows`.
        min_duration_ms: Shorter successful statements make no span.
        require_parent: Whether statements without a parent span make none.
        exclude: A regular expression; statements that it is found in make no span.
        metrics: Whether there are metrics.
        sdk: `auto` or `off`: whether the SDK is configured where nobody else has.
        flush_on_exit: Whether to flush where a server or a child process ends without the SDK's own `atexit` hook.
        tracer_provider: Where spans go; the global provider by default, also one that is set later.
        meter_provider: Where metrics go; likewise.
    """
    from ._boot import activate

    given = {
        "MODE": mode,
        "SPANS": spans,
        "QUERY_TEXT": query_text,
        "QUERY_MAX_LENGTH": query_max_length,
        "CAPTURE": capture,
        "MIN_DURATION_MS": min_duration_ms,
        "REQUIRE_PARENT": require_parent,
        "EXCLUDE": exclude,
        "METRICS": metrics,
        "SDK": sdk,
        "FLUSH_ON_EXIT": flush_on_exit,
    }
    options = {f"OTEL_ASYNC_SQLA_{name}": _as_text(value) for name, value in given.items() if value is not None}
    providers = {"tracer_provider": tracer_provider, "meter_provider": meter_provider}
    activate(options, **{name: value for name, value in providers.items() if value is not None})


def uninstrument() -> None:
    """
    Give every engine, class and function that `instrument()` has changed its identical original back.
    """
    from ._boot import deactivate

    deactivate()


def _as_text(value: Any) -> str:
    """
    Write an option as its environment variable has it, so that there is one parser.
    """
    if isinstance(value, (str, bool, int, float)):
        return str(value)
    value = getattr(value, "value", value)  # an enum's member
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return str(value)
    return ",".join(str(getattr(item, "value", item)) for item in value) or "none"


def _version() -> str:
    # An application's own OpenTelemetry need not have importlib_metadata.
    try:
        from importlib_metadata import PackageNotFoundError, version
    except ImportError:
        from importlib.metadata import PackageNotFoundError, version  # type: ignore[assignment]

    try:
        return str(version("otel-async-sqla-agent"))
    except PackageNotFoundError:  # vendored or frozen, without its metadata
        return "unknown"


def __getattr__(name: str) -> Any:
    # Nothing is imported before it is asked for: this package is imported in every process of the launcher.
    if name == "__version__":
        globals()[name] = _version()
        return globals()[name]
    if name == "Mode":
        from ._config import Mode

        return Mode
    if name == "AsyncSQLAlchemyInstrumentor":
        from ._instrumentor import AsyncSQLAlchemyInstrumentor

        return AsyncSQLAlchemyInstrumentor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
