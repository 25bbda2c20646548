from __future__ import annotations

import pytest

from otel_async_sqla_agent import _control
from otel_async_sqla_agent._control import Controls


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("BEGIN", "BEGIN"),
        ("begin isolation level serializable;", "BEGIN"),
        ("START  TRANSACTION READ ONLY", "START TRANSACTION"),
        (" COMMIT ; ", "COMMIT"),
        ("commit prepared 'x'", "COMMIT PREPARED"),
        ("ROLLBACK TO SAVEPOINT a", "ROLLBACK TO SAVEPOINT"),
        ("rollback to a", "ROLLBACK TO"),
        ("RELEASE a", "RELEASE"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        ("SAVEPOINT a; DELETE FROM t", None),
        ("COMMITTED", None),
        ("SELECT 1", None),
        ("", ""),
        (" ;\n", ""),
    ],
)
def test_control(text: str, control: str | None) -> None:
    """
    A text that is nothing but transaction control is told by its name, and one that sends nothing has an empty one.
    """
    controls = Controls()
    assert [control] * 2 == [controls[text], controls[text]]
    assert {text: control} == controls


def test_texts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_control, "CACHED_TEXTS", 8)
    controls = Controls()
    for number in range(40):
        assert controls[f"SELECT {number}"] is None
        assert len(controls) <= 8
