# Every target sets up .venv itself and needs only Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= runs/demo

.PHONY: demo demo-full test test-all test-newest endurance fuzz gpu lint

demo: .venv/runtime
	$(BIN)/prosam demo --workdir $(DEMO) $(ARGS)

# Takes hours. On a CPU it does as many runs at a time as there are cores.
demo-full: .venv/runtime
	$(BIN)/prosam reproduce --table methods --table shown --seeds 3 $(ARGS)

test: .venv/workflow
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not exhaustive" $(ARGS)

test-all: override ARGS += -m ""
test-all: test

# The quick tests with the newest Python found and the newest packages, without PyTorch; once more
# in flax's tree mode.
test-newest:
	@for python in $(NEWEST) python3.14 python3.13 python3.12 \
	    $$(ls -rd $$HOME/.pyenv/versions/3.1[2-9].*/bin/python 2>/dev/null); do \
	  $$python -c 'import venv' 2>/dev/null && break; python=; \
	done; \
	test -n "$$python" || { echo "no Python 3.12 or newer found: skipped"; exit 0; }; \
	test -d .venv-newest || $$python -m venv .venv-newest; \
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
	  --upgrade-strategy eager -e '.[hub,prepare]' beartype hypothesis import-linter \
	  ml-collections psutil pytest pytest-xdist \
	&& .venv-newest/bin/python -c 'import sys, flax, jax, numpy; print(sys.version.split()[0], \
	  "jax", jax.__version__, "flax", flax.__version__, "numpy", numpy.__version__)' \
	&& for graph_mode in true false; do \
	  FLAX_NNX_GRAPH_MODE=$$graph_mode .venv-newest/bin/python -m pytest -n auto --dist loadfile \
	    -m "not slow" $(ARGS) || exit 1; \
	done

# Damaged and hostile files, $(FUZZ) times as many as `make test` tries. About an hour with 100.
FUZZ ?= 100
fuzz: .venv/workflow
	FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/test_fuzz_*.py $(ARGS)

# Kills a tiny training 20 times; some minutes. ARGS="--kills 100 --seed 7" makes it longer.
endurance: .venv/workflow
	$(BIN)/python -m tools.endurance $(ARGS)

# On a GPU, with the JAX and PyTorch of $(PYTHON). What else it needs is installed beside them from
# .wheels, where benchmarks/gpu_wheels.sh puts it. ARGS="--smoke --device cpu" tries it anywhere.
gpu:
	@$(PYTHON) -c 'import grain' 2>/dev/null || test -d .gpu_site || $(PYTHON) -m pip install \
	  --quiet --no-index --no-deps --no-compile --target .gpu_site .wheels/*.whl
	PYTHONPATH=.gpu_site:. $(PYTHON) -m benchmarks.gpu $(ARGS)

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
