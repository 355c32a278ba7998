# Every target sets up .venv itself and needs only Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= runs/demo

.PHONY: demo demo-full test test-all lint

demo: .venv/runtime
	$(BIN)/prosam demo --workdir $(DEMO) $(ARGS)

# Takes hours. On a CPU it does as many runs at a time as there are cores.
demo-full: .venv/runtime
	$(BIN)/prosam demo --full --results docs/results.md $(ARGS)

test: .venv/workflow
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not exhaustive" $(ARGS)

test-all: override ARGS += -m ""
test-all: test

lint: .venv/workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than Python 3.11; run: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/runtime: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/workflow: .venv/bin/python pyproject.toml requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@ .venv/runtime
