# Every target works as the first command on a bare machine with Python 3.11 or newer: it installs what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.installed

.PHONY: install demo test check test-slow docs lint browser clean

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

# Two processes: half of the suite's time is spent waiting for processes that it starts.
test: lint
	$(BIN)/pytest --numprocesses 2 --dist worksteal

# What concerns a change, in seconds: make check stability/losses/softmax.py. The files are goals without a recipe.
FILES := $(filter %.py,$(MAKECMDGOALS))
PACKAGE_FILES := $(filter stability/%,$(FILES))

check: $(READY)
	$(if $(FILES),,$(error name the changed files: make check FILE.py ...))
	$(BIN)/ruff check $(FILES)
	$(BIN)/ruff format --check $(FILES)
	$(if $(PACKAGE_FILES),$(BIN)/mypy $(PACKAGE_FILES))
	$(BIN)/pytest --quiet $(shell $(BIN)/python tests/concerned.py $(FILES)) || [ $$? -eq 5 ]  # 5: there is none

# Also files that exist, which make would otherwise report as up to date.
.PHONY: $(FILES)
$(FILES): ; @:

# The documentation as pages, in site/; a broken link or an unknown name fails.
docs: $(READY)
	$(BIN)/mkdocs build --strict

# A browser for tests/test_browser.py, where one can be had; without it those tests are skipped, and say so.
browser:
	@command -v chromedriver >/dev/null \
	  || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null; } \
	  || echo "no browser: tests/test_browser.py will be skipped (apt-get install chromium chromium-driver, as root)"

# What is long: calibration of the statistics, the built wheel and pages of documentation.
test-slow: $(READY)
	$(BIN)/pytest -m slow

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
