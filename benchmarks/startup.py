"""
Measure what the agent adds to the start of a program, in fresh interpreters.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.results import Quartiles, Row
from integration.processes import ROOT, environ

RUNS = 20
PAIRS = 30  # more: what is measured is small beside the import

_IMPORT = "import otel_async_sqla_agent"
_HOOK = "from otel_async_sqla_agent._boot import activate; activate()"
_TIMED = """
import sys, time
begin = time.process_time_ns()
{code}
print([(time.process_time_ns() - begin) / 1e6, "sqlalchemy" in sys.modules])
"""
_WHOLE = """
{code}
import sqlalchemy.ext.asyncio
import time
print(time.process_time_ns() / 1e6)
"""


def rows() -> Iterator[Row]:
    """
    Return CPU time of the agent's parts, and of SQLAlchemy's import with the agent and without it, in turn.
    """
    for name, code, limit in (
        (_IMPORT, _IMPORT, 3),
        ("pre_instrument hook, with its imports", _HOOK, 5),
    ):
        runs = [_run(_TIMED, code) for _ in range(RUNS)]
        yield Quartiles.of([milliseconds for milliseconds, _ in runs]).row(name, ".2f", " ms", limit)
        imported = any(is_imported for _, is_imported in runs)
        yield Row("… imports sqlalchemy", "yes" if imported else "no", target="no", met=not imported)
    pairs = [(_run(_WHOLE, "pass"), _run(_WHOLE, _HOOK)) for _ in range(PAIRS)]
    yield Quartiles.of([bare for bare, _ in pairs]).row("python -c 'import sqlalchemy.ext.asyncio'", ".0f", " ms")
    yield Quartiles.of([armed - bare for bare, armed in pairs]).row("+ armed agent", "+.1f", " ms", 15)


def _run(program: str, code: str) -> Any:
    command = [sys.executable, "-c", program.format(code=code)]
    output = subprocess.run(command, cwd=ROOT, env=environ(), stdout=subprocess.PIPE, text=True, check=True)
    return ast.literal_eval(output.stdout)
