from __future__ import annotations

import sys
from pathlib import Path

import pytest

from integration.conftest import Receiver
from integration.processes import complaints, run
from tests.recording import AGENT

PROGRAM = """
import asyncio, sys
import logging
logging.basicConfig(format="%(levelname)s %(name)s %(message)s", level=logging.INFO, stream=sys.stdout)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

async def main(url):
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        print("result", (await connection.execute(text("SELECT 40 + :x"), {"x": 2})).scalar())
    await engine.dispose()

asyncio.run(main(sys.argv[1]))
"""
MEMORY = "sqlite+aiosqlite://"
SILENT = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "app.py"
    path.write_text(PROGRAM)
    return str(path)


def spans_of(receiver: Receiver) -> list[str]:
    return [span.name for span in receiver.spans() if span.scope == AGENT]


def test_zero_code_changes(program: str, postgresql: str, each_receiver: Receiver) -> None:
    """
    An unmodified program under the launcher sends its spans to a real OTLP receiver, over gRPC and over HTTP.
    """
    result = run(
        "opentelemetry-instrument",
        sys.executable,
        program,
        postgresql,
        OTEL_SERVICE_NAME="shop",
        OTEL_SEMCONV_STABILITY_OPT_IN="database",
        **SILENT,
        **each_receiver.environ,
    )
    assert (complaints(result), result.returncode) == ([], 0)
    assert "result 42" in result.stdout
    connect, statement = each_receiver.spans()
    assert (connect.service, connect.scope, connect.name) == ("shop", AGENT, "connect")
    assert (statement.service, statement.scope, statement.name, statement.status) == ("shop", AGENT, "SELECT", 0)
    # 1.4's dialect numbers the placeholders below us
    assert statement.attributes["db.query.text"].replace("::INTEGER", "") in ("SELECT 40 + $1", "SELECT 40 + %s")
    assert statement.attributes["db.system.name"] == "postgresql"


def test_start_up_line(program: str, receiver: Receiver) -> None:
    """
    The program's log has one line of ours, at the first engine.
    """
    result = run("opentelemetry-instrument", sys.executable, program, MEMORY, **SILENT, **receiver.environ)
    ours = [line for line in result.stdout.splitlines() if "async_sqla" in line]
    assert len(ours) == 1
    assert ours[0].startswith("INFO otel_async_sqla_agent otel-async-sqla-agent ")
    assert "mode auto, driver aiosqlite, stepped aside: " in ours[0]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({}, ["connect", "SELECT"], id="default"),
        pytest.param({"OTEL_ASYNC_SQLA_MODE": "engine"}, ["connect", "SELECT"], id="engine"),
        pytest.param({"OTEL_ASYNC_SQLA_MODE": "off"}, [], id="off"),
        pytest.param({"OTEL_ASYNC_SQLA_SPANS": "statement"}, ["SELECT"], id="spans"),
        pytest.param({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "async_sqla"}, [], id="disabled"),
        pytest.param({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}, [], id="all-disabled"),
        pytest.param({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "sqlalchemy"}, ["connect", "SELECT"], id="contrib"),
        pytest.param({"OTEL_ASYNC_SQLA_EXCLUDE": "select 40"}, ["connect"], id="exclude"),
    ],
)
def test_variables(variables: dict[str, str], expected: list[str], program: str, receiver: Receiver) -> None:
    """
    All configuration comes from the environment.
    """
    result = run("opentelemetry-instrument", sys.executable, program, MEMORY, **SILENT, **variables, **receiver.environ)
    assert (complaints(result), result.returncode) == ([], 0)
    assert expected == spans_of(receiver)


def test_command_line_arguments(program: str, receiver: Receiver) -> None:
    """
    The launcher takes each variable as an argument of its own, which wins over the environment.
    """
    result = run(
        "opentelemetry-instrument",
        "--async_sqla_mode",
        "engine",
        "--async_sqla_spans",
        "statement",
        sys.executable,
        program,
        MEMORY,
        OTEL_ASYNC_SQLA_MODE="off",
        **SILENT,
        **receiver.environ,
    )
    assert (complaints(result), result.returncode) == ([], 0)
    assert spans_of(receiver) == ["SELECT"]
    assert "--async_sqla_mode ASYNC_SQLA_MODE" in run("opentelemetry-instrument", "--help").stdout


BAD_VALUES = {
    "OTEL_ASYNC_SQLA_MODE": "everything",
    "OTEL_ASYNC_SQLA_SPANS": "selects",
    "OTEL_ASYNC_SQLA_QUERY_TEXT": "no",
    "OTEL_ASYNC_SQLA_QUERY_MAX_LENGTH": "two thousand",
    "OTEL_ASYNC_SQLA_MIN_DURATION_MS": "fast",
    "OTEL_ASYNC_SQLA_REQUIRE_PARENT": "maybe",
    "OTEL_ASYNC_SQLA_EXCLUDE": "(",
    "OTEL_ASYNC_SQLA_METRICS": "some",
    "OTEL_ASYNC_SQLA_SDK": "always",
    "OTEL_ASYNC_SQLA_FLUSH_ON_EXIT": "later",
}


def test_bad_values(program: str, receiver: Receiver) -> None:
    """
    Bad values give one warning each, which names the variable, and the program runs with the defaults.
    """
    result = run(
        "opentelemetry-instrument", sys.executable, program, MEMORY, **SILENT, **BAD_VALUES, **receiver.environ
    )
    assert (complaints(result), result.returncode) == ([], 0)
    warnings = [line for line in result.stdout.splitlines() if line.startswith("WARNING otel_async_sqla_agent")]
    assert [f"{name}={value!r} is not valid" for name, value in BAD_VALUES.items()] == [
        line.split(" ", 2)[2].split(" and is ignored; accepted: ")[0] for line in warnings
    ]
    assert spans_of(receiver) == ["connect", "SELECT"]


def test_collector_down(program: str) -> None:
    """
    Without a collector the program does its work and ends with its own exit code.
    """
    result = run(
        "opentelemetry-instrument",
        sys.executable,
        program,
        MEMORY,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
        **SILENT,
    )
    assert result.returncode == 0
    assert "result 42" in result.stdout


@pytest.mark.parametrize("command", [["-m", "json.tool", "--help"], ["-c", "pass"]], ids=["module", "nothing"])
def test_processes_without_async_engines_are_quiet(command: list[str], receiver: Receiver) -> None:
    """
    Helpers and shells under the launcher see and load nothing of the agent but its hook.
    """
    result = run("opentelemetry-instrument", sys.executable, *command, **SILENT, **receiver.environ)
    assert (complaints(result), result.returncode) == ([], 0)
    assert "sqla" not in result.stdout


def test_exit_code_of_a_failing_program(tmp_path: Path, postgresql: str, receiver: Receiver) -> None:
    """
    A program that dies of a database error dies as ever, and the span of the error arrives.
    """
    path = tmp_path / "app.py"
    path.write_text(PROGRAM.replace("SELECT 40 + :x", "SELECT 40 + :x FROM nowhere"))
    result = run("opentelemetry-instrument", sys.executable, str(path), postgresql, **SILENT, **receiver.environ)
    assert 1 == result.returncode
    assert "sqlalchemy.exc.ProgrammingError" in result.stderr
    assert 'relation "nowhere" does not exist' in result.stderr
    assert [("connect", 0), ("SELECT nowhere", 2)] == [(span.name, span.status) for span in receiver.spans()]
