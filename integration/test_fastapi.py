from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from integration.conftest import ReceivedSpan, Receiver, _free_port
from integration.processes import environ
from tests.recording import AGENT

APPLICATION = """
import os
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=5, max_overflow=0)
app = FastAPI()

@app.get("/items/{number}")
async def item(number: int):
    async with engine.connect() as connection:
        first = (await connection.execute(text("SELECT CAST(:n AS integer)"), {"n": number})).scalar()
        second = (await connection.execute(text("SELECT CAST(:n AS integer) * 2"), {"n": number})).scalar()
        return [first, second]
"""


@pytest.fixture
def server(tmp_path: Path, postgresql: str, receiver: Receiver) -> Iterator[str]:
    """
    The application under `opentelemetry-instrument uvicorn`, unmodified; it is stopped as users stop it.
    """
    (tmp_path / "app.py").write_text(APPLICATION)
    port = _free_port()
    process = subprocess.Popen(
        ["opentelemetry-instrument", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"],
        cwd=tmp_path,
        env=environ(
            DATABASE_URL=postgresql,
            OTEL_METRICS_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
            OTEL_BSP_SCHEDULE_DELAY="100",
            OTEL_SEMCONV_STABILITY_OPT_IN="database",
            **receiver.environ,
        ),
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url)
            break
        except httpx.TransportError:
            time.sleep(0.05)
    yield url
    process.send_signal(signal.SIGINT)
    process.wait(10)


def test_spans_under_their_request(server: str, receiver: Receiver) -> None:
    """
    Fifty concurrent requests: each request's statements, and no other's, stand under its own span.
    """

    async def main() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=server) as client:
            answers = await asyncio.gather(*[client.get(f"/items/{number}", timeout=30) for number in range(50)])
            return [answer.json() for answer in answers]

    assert [[number, number * 2] for number in range(50)] == asyncio.run(main())

    def is_request(span: ReceivedSpan) -> bool:
        return not span.parent_id and span.name == "GET /items/{number}"

    spans = receiver.wait_for(100, lambda span: span.scope == AGENT and span.name == "SELECT")
    # A request ends after its statements, so that the last ones may come with a later export.
    requests = {
        span.span_id: span.attributes["http.target" if "http.target" in span.attributes else "url.path"]
        for span in receiver.wait_for(50, is_request)
    }
    assert {f"/items/{number}": 2 for number in range(50)} == Counter(requests[span.parent_id] for span in spans)
    connects = [span for span in receiver.spans() if span.name == "connect"]
    assert 1 <= len(connects) <= 5
    assert {AGENT} == {span.scope for span in connects}
    assert all(span.parent_id in requests for span in connects)
