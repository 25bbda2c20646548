"""
The public API as a type checker sees it; mypy reads this file, nothing runs it.
"""

from __future__ import annotations

from typing_extensions import assert_type

import otel_async_sqla_agent
from otel_async_sqla_agent import AsyncSQLAlchemyInstrumentor, Mode, instrument, uninstrument

assert_type(otel_async_sqla_agent.__version__, str)
assert_type(instrument(), None)
assert_type(uninstrument(), None)
instrument(mode=Mode.BOTH, spans=["statement"], query_text="masked", query_max_length=100, exclude="pg_")
instrument(mode="engine", spans="none", require_parent=True, flush_on_exit=False)
instrument(query_max_length="100")  # type: ignore[arg-type]
instrument(nonsense=True)  # type: ignore[call-arg]
AsyncSQLAlchemyInstrumentor().instrument()
