"""
Name the environment variables that configure the agent.

`opentelemetry-instrument` imports this module and turns every name into a command-line argument
(`--async_sqla_mode both`), so it must stay free of imports.
"""

OTEL_ASYNC_SQLA_MODE = "OTEL_ASYNC_SQLA_MODE"
"""
Which layers make spans: `auto` (default), `engine`, `driver`, `both` or `off`.
"""

OTEL_ASYNC_SQLA_SPANS = "OTEL_ASYNC_SQLA_SPANS"
"""
Which calls make spans: a list of `statement`, `connect` (both by default) and `transaction`, or `none`.
"""

OTEL_ASYNC_SQLA_QUERY_TEXT = "OTEL_ASYNC_SQLA_QUERY_TEXT"
"""
What becomes of the SQL text: `auto` (default; as it is if parameterised, else its literals as `?`),
`masked` (always masked), `raw` (never masked) or `off` (no text).
"""

OTEL_ASYNC_SQLA_QUERY_MAX_LENGTH = "OTEL_ASYNC_SQLA_QUERY_MAX_LENGTH"
"""
How many characters of SQL text a span may have (default 2048); longer text is cut after masking.
"""

OTEL_ASYNC_SQLA_CAPTURE = "OTEL_ASYNC_SQLA_CAPTURE"
"""
What a span says besides (default nothing): a list of `parameters` (`db.query.parameter.<key>`) and `rows`
(`db.response.returned_rows`).
"""

OTEL_ASYNC_SQLA_MIN_DURATION_MS = "OTEL_ASYNC_SQLA_MIN_DURATION_MS"
"""
Shorter successful statements make no span (default 0, all do); metrics stay complete.
"""

OTEL_ASYNC_SQLA_REQUIRE_PARENT = "OTEL_ASYNC_SQLA_REQUIRE_PARENT"
"""
`true`: no span without a parent span (default `false`).
"""

OTEL_ASYNC_SQLA_EXCLUDE = "OTEL_ASYNC_SQLA_EXCLUDE"
"""
A regular expression, searched in the statement ignoring case: what matches makes no span.
"""

OTEL_ASYNC_SQLA_METRICS = "OTEL_ASYNC_SQLA_METRICS"
"""
`false`: no metrics (default `true`).
"""

OTEL_ASYNC_SQLA_SDK = "OTEL_ASYNC_SQLA_SDK"
"""
`auto`: configure the SDK from the `OTEL_` variables, as the launcher would, when the first async engine opens its
first connection and no provider is set by then; `off` (default, but where the files of `preinstall` activate the
agent): leave that to others.
"""

OTEL_ASYNC_SQLA_FLUSH_ON_EXIT = "OTEL_ASYNC_SQLA_FLUSH_ON_EXIT"
"""
`false`: no flush where a server or a child process ends without the SDK's own (default `true`).
"""
