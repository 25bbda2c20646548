"""
Tell transaction control from statements.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST_CONTROL: Final = 1_024  # characters; the name of a prepared transaction has up to 200
CACHED_TEXTS: Final = 512

# One statement that is nothing but transaction control, as drivers and applications write it.
_TRANSACTION = re.compile(
    r"\s*(BEGIN|START\s+TRANSACTION|COMMIT(?:\s+PREPARED)?|END|ABORT|ROLLBACK(?:\s+PREPARED|\s+TO(?:\s+SAVEPOINT)?)?"
    r"|SAVEPOINT|RELEASE(?:\s+SAVEPOINT)?|PREPARE\s+TRANSACTION)\b[^;]*;?\s*\Z",
    re.IGNORECASE,
)


class Controls(dict[str, "str | None"]):
    """
    What texts of up to 1,024 characters are: the name of transaction control, or None for a statement.

    Empty for one that sends nothing: a ping, or a semicolon. A dictionary, because each statement of a driver asks.
    """

    def __missing__(self, text: str) -> str | None:
        control: str | None = ""
        if text.strip("; \n"):
            found = _TRANSACTION.match(text)
            control = None if found is None else " ".join(found[1].upper().split())
        if len(self) >= CACHED_TEXTS:
            self.clear()
        self[text] = control
        return control


CONTROLS = Controls()
