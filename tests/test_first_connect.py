from __future__ import annotations

import functools
import inspect
from typing import Any

import aiosqlite
import pytest

from otel_async_sqla_agent._first_connect import FirstConnect
from tests.conftest import run

Connection = aiosqlite.core.Connection


async def connect() -> None:
    async with aiosqlite.connect(":memory:"):
        pass


def test_stand_in_and_give_back() -> None:
    """
    The stand-in is of the same kind and signature, and gives the identical function back.
    """
    before = dict(vars(Connection))
    original: Any = Connection._connect
    first_connect = FirstConnect(aiosqlite, lambda: None)
    first_connect.install()
    stand_in: Any = Connection._connect
    assert stand_in is not original
    assert inspect.iscoroutinefunction(stand_in)
    assert inspect.signature(original) == inspect.signature(stand_in)
    first_connect.uninstall()
    assert before == dict(vars(Connection))


def test_first_connection_starts_the_layer() -> None:
    """
    The first connection is made by what stands there after the start, not by the stand-in.
    """
    calls = []
    original: Any = Connection._connect

    async def instrumented(connection: Any) -> Any:
        calls.append("instrumented")
        return await original(connection)

    def start() -> None:
        calls.append("start")
        first_connect.uninstall()
        Connection._connect = instrumented  # type: ignore[method-assign]

    first_connect = FirstConnect(aiosqlite, start)
    first_connect.install()
    try:
        run(connect())
        run(connect())
    finally:
        Connection._connect = original  # type: ignore[method-assign]
    assert ["start", "instrumented", "instrumented"] == calls


def test_below_another_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where another tool has put its own function over the stand-in, that goes on as if there were no stand-in.
    """
    calls = []
    first_connect = FirstConnect(aiosqlite, lambda: calls.append("start"))
    first_connect.install()
    stand_in: Any = Connection._connect

    @functools.wraps(stand_in)
    async def others(connection: Any) -> Any:
        calls.append("others")
        return await stand_in(connection)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "_connect", others)
        run(connect())
        first_connect.uninstall()
        assert others is vars(Connection)["_connect"]
        run(connect())
    first_connect.uninstall()
    assert ["others", "start"] * 2 == calls
