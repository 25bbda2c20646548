from __future__ import annotations

import sys

import pytest

from integration.conftest import Receiver
from integration.processes import run

WITH_ENGINE = """
import sys, unittest
from sqlalchemy.ext.asyncio import create_async_engine
engine = create_async_engine("sqlite+aiosqlite://")
unittest.main("aiosqlite.tests", argv=["unittest", "-q"])
"""


@pytest.mark.parametrize(("mode", "has_spans"), [("auto", True), ("engine", False)])
def test_aiosqlites_own_tests(mode: str, has_spans: bool, receiver: Receiver) -> None:
    """
    aiosqlite's own test suite passes with the agent on and an engine instrumented; its calls make spans or none.
    """
    result = run(
        "opentelemetry-instrument",
        sys.executable,
        "-c",
        WITH_ENGINE,
        OTEL_ASYNC_SQLA_MODE=mode,
        # contrib's puts a proxy around a connection of sqlite3's own, with which a test makes a backup
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="sqlite3",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        **receiver.environ,
    )
    assert result.returncode == 0, result.stderr
    assert "\nOK" in result.stderr
    assert has_spans is bool(receiver.spans())
