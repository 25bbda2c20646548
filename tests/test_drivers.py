from __future__ import annotations

import importlib
import inspect
from typing import Any
from unittest.mock import MagicMock

import pytest

from otel_async_sqla_agent._bracket import CONNECT
from otel_async_sqla_agent._drivers import DRIVERS
from otel_async_sqla_agent._drivers_mysql import _CALLS
from otel_async_sqla_agent._wraps import Wrap


def _calls() -> list[Any]:
    """
    Return each row of the table that is a public method.
    """
    found = []
    for driver, row in DRIVERS.items():
        module = importlib.import_module(driver)
        wraps = [wrap for wrap in row.wraps(module) if wrap.kind != CONNECT and wrap.replace is None]
        if driver == "asyncmy":
            wraps += [Wrap(module.cursors.Cursor, name, read=read) for name, read in _CALLS.items()]
        public = [wrap for wrap in wraps if wrap.read is not None and not wrap.name.startswith("_")]
        found += [pytest.param(wrap, id=f"{driver}-{wrap.owner.__name__}.{wrap.name}") for wrap in public]
    return found


@pytest.mark.parametrize("wrap", _calls())
def test_arguments_by_name(wrap: Wrap) -> None:
    """
    A call is read whichever of its arguments the application gives by the driver's own names.
    """
    parameters = inspect.signature(getattr(wrap.owner, wrap.name)).parameters.values()
    by_name = [item.name for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    read: Any = wrap.read
    read(MagicMock(), **{name: MagicMock() for name in by_name[1:]})
