from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import sqlalchemy

from integration.processes import ROOT, run
from otel_async_sqla_agent import environment_variables

README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def without_times(picture: str) -> str:
    """
    Leave out the bars and the milliseconds, which differ each time.
    """
    return re.sub(r"[▏▎▍▌▋▊▉█▐▕]|[\d.]+ ms", "", re.sub(r" +", " ", re.sub(r"[▏▎▍▌▋▊▉█▐▕]+", "", picture)))


def words(picture: str) -> list[list[str]]:
    return [without_times(line).split() for line in picture.splitlines()]


@pytest.mark.skipif(
    sqlalchemy.__version__.startswith("1."),
    reason="1.4 with aiosqlite 0.22 does not end where an engine is not disposed of, also without the agent",
)
def test_readme_example(tmp_path: Path) -> None:
    """
    README's program prints what README shows.
    """
    [program] = _blocks("python")
    command, _, shown = _blocks("console")[0].partition("\n")
    (tmp_path / "app.py").write_text(program)
    if sys.version_info < (3, 11):  # where the sqlite3 module does not tell SQLite's code yet
        shown = shown.replace("2067", "sqlite3.IntegrityError")
    variables = dict(item.split("=") for item in command.split() if item.startswith("OTEL_"))
    result = run(
        "opentelemetry-instrument",
        sys.executable,
        "app.py",
        cwd=tmp_path,
        COLUMNS="100",
        OTEL_LOGS_EXPORTER="none",
        **variables,
    )
    assert words(shown) == words(result.stdout)
    assert "IntegrityError" in result.stderr


def test_readme_names_every_variable() -> None:
    """
    README's table has the variables that there are.
    """
    assert set(re.findall(r"`(OTEL_ASYNC_SQLA_\w+)`", README)) == {
        name for name in vars(environment_variables) if name.startswith("OTEL_")
    }


def test_readme_is_short() -> None:
    """
    README stays something that one reads; reference belongs into docs/.
    """
    assert len(README.splitlines()) <= 120


DEMO = """\
POST /shop
├─ connect
├─ PRAGMA PRAGMA main.table_info(?)
├─ CREATE TABLE product CREATE TABLE product ( id INTEGER NOT NULL
├─ BATCH INSERT product ×100 INSERT INTO product (name, price) VALUES (?, ?)
GET /prices
├─ SELECT product SELECT count(*) FROM product WHERE price > ?
├─ SELECT product SELECT product.price FROM product
POST /orders/{customer}
├─ SELECT product SELECT product.id, product.name, product.price FROM product WHERE product.name IN (?, ?, ?)
├─ BATCH INSERT order_line ×3 INSERT INTO order_line (customer, product_id, quantity) VALUES (?, ?, ?)
POST /products/{name}
├─ ✗ INSERT product INSERT INTO product (name, price) VALUES (?, ?)
UNIQUE constraint failed: product.name
"""


@pytest.mark.skipif(sqlalchemy.__version__.startswith("1."), reason="the example is written for SQLAlchemy 2")
def test_demo() -> None:
    """
    The demo draws the tree of an unmodified program: requests, their statements, and the error.
    """
    result = run("otel-async-sqla-agent", "demo", "examples/shop.py", COLUMNS="200")
    assert result.returncode == 0, result.stderr
    command, *rest = result.stdout.splitlines()
    assert command.startswith("$ OTEL_SERVICE_NAME=shop OTEL_TRACES_EXPORTER=waterfall ")
    assert rest[:3] == ["61 products above 9.99, up to 25.00", "Ada pays 41.75", "tea no. 7 is in the shop already"]
    drawn = " ".join(" ".join(line) for line in words("\n".join(rest)))
    assert [line for line in DEMO.splitlines() if line not in drawn] == []
