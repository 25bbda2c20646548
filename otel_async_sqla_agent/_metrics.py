"""
Make the instruments, once there is a MeterProvider.

Source: OpenTelemetry semantic conventions v1.44.0, docs/db/database-metrics.md.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry import metrics
from opentelemetry.semconv.metrics.db_metrics import DB_CLIENT_OPERATION_DURATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

    Callback = Callable[[CallbackOptions], Iterable[Observation]]

_logger = logging.getLogger("otel_async_sqla_agent")

DURATION_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
ROWS_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Instruments:
    """
    The instruments of one meter.

    Args:
        meter: Where they are made.
        observed: What is asked at each collection: the callback of each observable instrument, by its name.
    """

    def __init__(self, meter: metrics.Meter, observed: Mapping[str, Callback]) -> None:
        self.duration = meter.create_histogram(
            DB_CLIENT_OPERATION_DURATION,
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
        self.returned_rows = meter.create_histogram(
            "db.client.response.returned_rows",
            unit="{row}",
            description="The number of rows that a statement returned.",
            explicit_bucket_boundaries_advisory=ROWS_BUCKETS,
        )
        self.create_time = _pool_histogram(meter, "create_time", "The time it took to create a new connection.")
        self.wait_time = _pool_histogram(
            meter, "wait_time", "The time it took to obtain an open connection from the pool."
        )
        self.use_time = _pool_histogram(
            meter, "use_time", "The time between borrowing a connection and returning it to the pool."
        )
        self.timeouts = meter.create_counter(
            "db.client.connection.timeouts",
            unit="{timeout}",
            description="The number of connection requests that timed out.",
        )
        for name, (unit, description) in _OBSERVED.items():
            meter.create_observable_up_down_counter(
                f"db.client.connection.{name}", [observed[name]], unit=unit, description=description
            )


_OBSERVED = {
    "count": ("{connection}", "The number of connections in the state that the attribute tells."),
    "idle.max": ("{connection}", "The maximum number of idle open connections allowed."),
    "idle.min": ("{connection}", "The minimum number of idle open connections allowed."),
    "max": ("{connection}", "The maximum number of open connections allowed."),
    "pending_requests": ("{request}", "The number of requests waiting for an open connection."),
}


def _pool_histogram(meter: metrics.Meter, name: str, description: str) -> metrics.Histogram:
    return meter.create_histogram(
        f"db.client.connection.{name}",
        unit="s",
        description=description,
        explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
    )


class Metrics:
    """
    Give the instruments as soon as there is a MeterProvider, which the application may set at any time.

    The API's own instruments stand in until then; each knows the real one once there is one.

    Args:
        enabled: What the configuration says.
        meter_provider: Where metrics go; the global one if None.
        version: The agent's.
        observed: The callbacks of the observable instruments.
    """

    def __init__(
        self, *, enabled: bool, meter_provider: MeterProvider | None, version: str, observed: Mapping[str, Callback]
    ) -> None:
        self._instruments: Instruments | None = None
        if enabled:
            try:
                meter = metrics.get_meter("otel_async_sqla_agent", version, meter_provider)
                self._instruments = Instruments(meter, observed)
            except Exception:
                _logger.exception("otel-async-sqla-agent could not make its instruments; there are no metrics")

    def instruments(self) -> Instruments | None:
        """
        Return the instruments; None while nothing would come of them.
        """
        instruments = self._instruments
        if instruments is None or getattr(instruments.duration, "_real_instrument", instruments) is None:
            return None
        return instruments
