"""
Keep a failure of the agent's own code away from the application.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from opentelemetry import metrics

_logger = logging.getLogger("otel_async_sqla_agent")

FAILURE_LIMIT = 5


class Guard:
    """
    Count what fails inside one layer; after five failures the layer is switched off.

    Only `Exception` ever reaches a guard: `CancelledError`, `GreenletExit`, `KeyboardInterrupt` and
    their like belong to the application and are never swallowed.

    Args:
        layer: The layer's name, for the log and the metric.
        version: The agent's.
        meter_provider: Where `async_sqla.internal_errors` is counted; the global one if None.
    """

    def __init__(self, layer: str, version: str, meter_provider: metrics.MeterProvider | None) -> None:
        self.layer = layer
        self._version = version
        self.active = True
        self._meter_provider = meter_provider
        self._failures = 0

    def run(self, call: Callable[..., object], *args: object, **kwargs: object) -> None:
        """
        Make a call, if the layer is not off, and keep its failure here.
        """
        if self.active:
            try:
                call(*args, **kwargs)
            except Exception as error:  # noqa: BLE001
                self.failed(error)

    def failed(self, error: Exception) -> None:
        """
        Log the first failure, count each, and switch the layer off at the fifth.
        """
        self._failures += 1
        if self._failures >= FAILURE_LIMIT:
            self.active = False
        for tell in (self._log, self._count) if self._failures == 1 else (self._count,):
            self._tell(tell, error)

    def _tell(self, tell: Callable[[Exception], None], error: Exception) -> None:
        try:
            tell(error)
        except Exception:  # noqa: BLE001, S110 - the metrics SDK, or a log filter of the application
            pass

    def _log(self, error: Exception) -> None:
        _logger.error(
            "otel-async-sqla-agent: its %s layer failed; the query was not affected. After %d failures "
            "the layer switches itself off.",
            self.layer,
            FAILURE_LIMIT,
            exc_info=error,
        )

    def _count(self, error: Exception) -> None:
        meter = metrics.get_meter("otel_async_sqla_agent", self._version, self._meter_provider)
        counter = meter.create_counter(
            "async_sqla.internal_errors",
            unit="{error}",
            description="Failures of the agent's own code; the query was not affected.",
        )
        counter.add(1, {"async_sqla.layer": self.layer, "error.type": type(error).__qualname__})
