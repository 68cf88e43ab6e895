# Every target sets itself up: a machine with Python >= 3.11 and make is enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH  := $(VENV)/.ready-bench
DOCS   := $(VENV)/.ready-docs

.PHONY: demo test lint bench bench-full docs clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## compare the heads on the interpreter's own source, in at most four minutes
	$(BIN)/vastmax compare lm --budget 18s --points 5 --point-tokens 6000 --eval-tokens 12000

test: lint  ## ruff, mypy and the test suite
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BENCH): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

bench: $(BENCH)  ## the measurements behind the README's figures, beside their peers, in minutes
	$(BIN)/python -m benchmarks

bench-full: $(BENCH)  ## the same with larger sizes, slower peers and more rounds
	$(BIN)/python -m benchmarks --full

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# The variable leaves out the theme's notice about its successor, which is about no page of ours.
docs: $(DOCS)  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache runs
