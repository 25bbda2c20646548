"""
The agent as an ordinary OpenTelemetry instrumentor, for programs and vendor distros that expect one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # untyped

from . import instrument, uninstrument

if TYPE_CHECKING:
    from collections.abc import Collection


class AsyncSQLAlchemyInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """
    Instrument every async engine; `instrument()` takes the options of `otel_async_sqla_agent.instrument()`.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """
        Return what is instrumented, without an upper cap: the layers look for what they need.
        """
        return ("sqlalchemy >= 1.4",)

    def _instrument(self, **kwargs: Any) -> None:
        instrument(**kwargs)

    def _uninstrument(self, **_kwargs: Any) -> None:
        uninstrument()
