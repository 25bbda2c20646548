"""
Stand in front of contrib's instrumentors for drivers: opentelemetry-instrumentation-asyncpg, -psycopg and -sqlite3.

Ours are always the outermost functions. They step back while contrib puts its own there or takes them away, so that
each side finds what it left, whoever comes first.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from opentelemetry.trace import TracerProvider

_logger = logging.getLogger("otel_async_sqla_agent")

# Contrib's module to the driver that it makes spans of, and its instrumentor.
_INSTRUMENTORS = {
    "asyncpg": ("asyncpg", "AsyncPGInstrumentor"),
    "psycopg": ("psycopg", "PsycopgInstrumentor"),
    "sqlite3": ("aiosqlite", "SQLite3Instrumentor"),
}

_UNDERSTOOD = {"raise_exception_on_conflict", "skip_dep_check", "tracer_provider"}


class Standing(Protocol):
    """
    What stands in front of contrib.
    """

    def step_back(self, driver: str) -> None:
        """
        Give the driver's functions back for a moment.
        """

    def step_in(self, driver: str, *, contrib: bool, tracer_provider: TracerProvider | None) -> None:
        """
        Replace them again.

        Args:
            driver: The driver's name.
            contrib: Whether contrib's functions are there.
            tracer_provider: Where contrib was told that spans go, if it was.
        """


class ContribDriver:
    """
    Contrib's instrumentor for one driver.

    Args:
        module: Contrib's module.
        standing: What stands in front of it.
    """

    def __init__(self, module: ModuleType, standing: Standing) -> None:
        name = module.__name__.rpartition(".")[2]
        self.distribution = f"opentelemetry-instrumentation-{name}"
        self._driver, class_name = _INSTRUMENTORS[name]
        self._instrumentor: Any = getattr(module, class_name)
        self._standing = standing
        self._tracer_provider: TracerProvider | None = None
        for method in ("instrument", "uninstrument"):
            setattr(self._instrumentor, method, self._listening(getattr(self._instrumentor, method)))
        if self._instrumentor().is_instrumented_by_opentelemetry:  # before the agent was active
            self._guarded(self._standing.step_back)
            self._guarded(self._step_in)

    def uninstall(self) -> None:
        """
        Give contrib its methods back.
        """
        del self._instrumentor.instrument, self._instrumentor.uninstrument  # the base class has the originals

    def _listening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(instrumentor: Any, **kwargs: Any) -> Any:
            self._tracer_provider = kwargs.get("tracer_provider")
            self._warn_of_lost_options(kwargs)
            self._guarded(self._standing.step_back)
            try:
                return original(instrumentor, **kwargs)
            finally:
                self._guarded(self._step_in)

        return method

    def _warn_of_lost_options(self, options: dict[str, Any]) -> None:
        lost = sorted(name for name, value in options.items() if value and name not in _UNDERSTOOD)
        if lost:
            _logger.warning(
                "%s().instrument(%s): calls of %s are instrumented by otel-async-sqla-agent, which has no equivalent "
                "of these options",
                self._instrumentor.__name__,
                ", ".join(lost),
                self._driver,
            )

    def _step_in(self, driver: str) -> None:
        is_active = self._instrumentor().is_instrumented_by_opentelemetry
        self._standing.step_in(driver, contrib=is_active, tracer_provider=self._tracer_provider)

    def _guarded(self, call: Callable[[str], None]) -> None:
        try:
            call(self._driver)
        except Exception:
            _logger.exception("otel-async-sqla-agent could not stand in front of %s", self.distribution)
