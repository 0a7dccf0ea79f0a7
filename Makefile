# Every target works as the first command on a bare machine with Python 3.11 or newer: it installs what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.installed

.PHONY: install demo test test-slow docs lint clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/stability run quickstart

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest

# The documentation as pages, in site/; a broken link or an unknown name fails.
docs: $(READY)
	$(BIN)/mkdocs build --strict

# What is long: calibration of the statistics, the built wheel and pages of documentation, the page in a browser where there is one.
test-slow: $(READY)
	$(BIN)/pytest -m slow

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
