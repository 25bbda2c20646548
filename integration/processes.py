"""
Run programs as users do, with nothing of the tests' own environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

# What depends on OpenTelemetry's version runs in the oldest environment as well.
newest_only = pytest.mark.skipif(
    version("opentelemetry-instrumentation").startswith("0.54"), reason="does not depend on OpenTelemetry's version"
)
# What contrib's instrumentor says of SQLAlchemy 2.1.
NOISE = "sqlalchemy only instruments"
ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def environ(**variables: str) -> dict[str, str]:
    """
    Return an environment without any OTEL_ variable but the given ones.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))}
    path = os.pathsep.join([str(BIN), inherited.get("PATH", "")])
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", **variables}


def run(*command: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """
    Run a command to its end; its output is text.
    """
    return subprocess.run(
        command, cwd=cwd, env=environ(**variables), capture_output=True, text=True, timeout=120, check=False
    )


def complaints(result: subprocess.CompletedProcess[str]) -> list[str]:
    """
    Return the lines on standard error, without contrib's own refusal of SQLAlchemy 2.1.
    """
    return [line for line in result.stderr.splitlines() if not line.startswith(NOISE)]
