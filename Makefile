# make demo: one question answered, from an empty machine.  make test: linters, types, the whole suite.
# make test-faults: hosts that break, FAULTS times in all, at drawn moments of sweeps; wants root, for namespaces.
# GROKSCALE_FAULTS_GO_ON=1 goes on with a campaign that was cut short, GROKSCALE_FAULTS_KINDS="A;B" deals only these.
# make bench: speed, side by side with the ordinary way; wants an idle machine.
# make bench-store: a store of 10^6 replicas and 10^8 points, and MLflow beside it; two GB of disk, an idle machine.
# make bench-gpu: the rows and the tests that want a GPU; says so and ends with 2 where there is none.
# All set up .venv once, with the versions of constraints.txt. PIP_ARGS goes to pip, for example an index that has
# builds of torch without CUDA, which are a tenth of the size.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
FAULTS ?= 200
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-faults lint bench bench-gpu bench-store

demo: $(READY)
	$(BIN)/grokscale sweep experiments/quickstart.toml

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 12 $(PYTEST_ARGS)

test-faults: $(READY)
	GROKSCALE_FAULTS=$(FAULTS) $(BIN)/python -m pytest -m fault tests/faults $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --write benchmarks/RESULTS.md

bench-store: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.store --write benchmarks/STORE.md

bench-gpu: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gpu --write benchmarks/RESULTS-GPU.md
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu tests

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "grokscale needs Python 3.11 or later; name one with make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@
