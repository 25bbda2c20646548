"""
Make `python -m otel_async_sqla_agent` the console script.
"""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
