# On a fresh machine with Python 3.11, pip and make: `make demo` and `make test`; `make test-all` adds the slow tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test test-all check docs site format clean

demo: $(BIN)/.installed
	$(BIN)/python examples/digits_demo.py

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n 2

test-all: $(BIN)/.installed
	$(BIN)/python -m pytest -n 2 -m ""

check: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/make.py --check

docs: $(BIN)/.installed
	$(BIN)/python docs/make.py

site: docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv installs the whole set in a minute where pip needs many; bytecode makes each new process start three times as fast
$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo_output dist site .mypy_cache .ruff_cache .pytest_cache
