from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from integration.conftest import Receiver, _free_port
from integration.processes import NOISE, environ, newest_only
from tests.recording import AGENT

APPLICATION = """
import json, os
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

engine = create_async_engine("sqlite+aiosqlite:///test.db")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await engine.dispose()
        await send({"type": "lifespan.shutdown.complete"})
        return
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": json.dumps(os.getpid()).encode()})

if __name__ == "__main__":
    import sys, uvicorn
    uvicorn.run(app, port=int(sys.argv[1]))
"""


class Server:
    """
    The application behind a server, unmodified, under the launcher.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.requests = 0
        self.workers: set[int] = set()

    def answers(self) -> bool:
        try:
            self.workers.add(httpx.get(self.url, timeout=30).json())
        except httpx.TransportError:
            return False
        self.requests += 1
        return True

    def wait_for_workers(self, count: int) -> None:
        """
        Send requests until so many processes have answered.
        """
        deadline = time.monotonic() + 60
        while len(self.workers) < count and time.monotonic() < deadline and self.process.poll() is None:
            if not self.answers():
                time.sleep(0.05)
        assert count == len(self.workers)

    def stop(self) -> int:
        """
        Stop it as systemd, Docker and Kubernetes do, shortly after the last request.
        """
        assert self.answers()
        time.sleep(0.05)
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def serve(folder: Path, *command: str, application: str = APPLICATION, **variables: str) -> Iterator[Server]:
    """
    Start a server; what it says on standard error goes into the file `stderr` of the folder.
    """
    (folder / "app.py").write_text(application)
    port = _free_port()
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            ["opentelemetry-instrument", *(part.replace("PORT", str(port)) for part in command)],
            cwd=folder,
            env=environ(OTEL_LOGS_EXPORTER="none", **variables),
            stderr=stderr,
        )
    try:
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait(60)


def statements(receiver: Receiver) -> int:
    return sum(span.scope == AGENT and span.name == "SELECT" for span in receiver.spans())


def measured_statements(receiver: Receiver) -> int:
    """
    Return how many statements the metrics of all processes tell of; they are cumulative in each.
    """
    counts: dict[int, int] = {}
    for point in _points(receiver, "db.client.operation.duration"):
        counts[point.start_time_unix_nano] = point.count
    return sum(counts.values())


def _points(receiver: Receiver, name: str) -> Iterator[Any]:
    for request in receiver.metric_requests():
        for resource in request.pbreq.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        yield from metric.histogram.data_points


UVICORN = ("uvicorn", "app:app", "--port", "PORT")
# On a busy machine uvicorn would kill workers while they start.
PATIENT = ("--timeout-worker-healthcheck", "60")
GUNICORN = ("gunicorn", "app:app", "--bind", "127.0.0.1:PORT", "--worker-class", "uvicorn_worker.UvicornWorker")


@pytest.mark.parametrize(
    ("command", "workers", "exit_code"),
    [
        pytest.param(UVICORN, 1, -signal.SIGTERM, id="uvicorn"),
        pytest.param((sys.executable, "app.py", "PORT"), 1, -signal.SIGTERM, id="uvicorn.run", marks=newest_only),
        pytest.param((*UVICORN, "--workers", "2", *PATIENT), 2, 0, id="uvicorn-workers"),
        pytest.param((*UVICORN, "--reload"), 1, 0, id="uvicorn-reload"),
        pytest.param((*GUNICORN, "--workers", "2"), 2, 0, id="gunicorn", marks=newest_only),
        pytest.param((*GUNICORN, "--workers", "2", "--preload"), 2, 0, id="gunicorn-preload", marks=newest_only),
        pytest.param(("hypercorn", "app:app", "--bind", "127.0.0.1:PORT"), 1, 0, id="hypercorn", marks=newest_only),
    ],
)
def test_nothing_is_lost(
    command: tuple[str, ...], workers: int, exit_code: int, tmp_path: Path, receiver: Receiver
) -> None:
    """
    A server that is stopped right after a request has sent every span and its last metrics, with the default delays.
    """
    with serve(tmp_path, *command, **receiver.environ) as server:
        server.wait_for_workers(workers)
        assert exit_code == server.stop()
    assert (server.requests, server.requests) == (statements(receiver), measured_statements(receiver))


def test_switched_off(tmp_path: Path, receiver: Receiver) -> None:
    """
    With OTEL_ASYNC_SQLA_FLUSH_ON_EXIT=false the server ends the same way, and loses what it has buffered.
    """
    with serve(tmp_path, *UVICORN, OTEL_ASYNC_SQLA_FLUSH_ON_EXIT="false", **receiver.environ) as server:
        server.wait_for_workers(1)
        assert -signal.SIGTERM == server.stop()
    assert (0, 0) == (statements(receiver), measured_statements(receiver))


def test_collector_hangs(tmp_path: Path) -> None:
    """
    Where nobody answers an export that may take ten minutes, the server ends long before, by the same signal.
    """
    with socket.create_server(("127.0.0.1", 0)) as collector:
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}"
        with serve(
            tmp_path,
            *UVICORN,
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_TIMEOUT="600",
        ) as server:
            server.wait_for_workers(1)
            assert -signal.SIGTERM == server.stop()


@newest_only  # before, the SDK's own `force_flush` warns
def test_application_that_flushes_itself(tmp_path: Path, receiver: Receiver) -> None:
    """
    An application that shuts its providers down itself loses nothing, and hears nothing of us.
    """
    application = APPLICATION.replace(
        "await engine.dispose()",
        "await engine.dispose(); import opentelemetry.trace as t, opentelemetry.metrics as m; "
        "t.get_tracer_provider().shutdown(); m.get_meter_provider().shutdown()",
    )
    command = (*UVICORN, "--log-level", "warning")
    with serve(tmp_path, *command, application=application, **receiver.environ) as server:
        server.wait_for_workers(1)
        server.stop()
    assert (server.requests, server.requests) == (statements(receiver), measured_statements(receiver))
    assert [line for line in (tmp_path / "stderr").read_text().splitlines() if not line.startswith(NOISE)] == []
