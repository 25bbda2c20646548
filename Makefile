# `make demo` and `make test` are all the set-up there is; the rest is for who works on the agent.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast lint format bench clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev --editable '.[cli,distro,instruments]'
	@touch $@

# Contrib's instrumentor, which the tests install, would say that it refuses SQLAlchemy 2.1.
demo: export OTEL_PYTHON_DISABLED_INSTRUMENTATIONS ?= sqlalchemy
demo: .venv/ready
	@$(BIN)/otel-async-sqla-agent demo examples/shop.py

test: .venv/ready
	$(BIN)/nox --non-interactive

test-fast: .venv/ready
	$(BIN)/python -m pytest tests

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .nox .hypothesis .mypy_cache .pytest_cache .ruff_cache
