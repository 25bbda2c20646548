from __future__ import annotations

import sys

from integration.conftest import Receiver
from integration.processes import run

WITH_ENGINE = """
import sys, unittest
from sqlalchemy.ext.asyncio import create_async_engine
engine = create_async_engine("sqlite+aiosqlite://")
unittest.main("aiosqlite.tests", argv=["unittest", "-q"])
"""


def test_aiosqlites_own_tests(receiver: Receiver) -> None:
    """
    aiosqlite's own test suite passes with the agent on and an engine instrumented.
    """
    result = run(
        "opentelemetry-instrument",
        sys.executable,
        "-c",
        WITH_ENGINE,
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        **receiver.environ,
    )
    assert result.returncode == 0, result.stderr
    assert "\nOK" in result.stderr
    assert receiver.spans() == []
