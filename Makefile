# make demo: one question answered, from an empty machine.  make test: linters, types, the whole suite.
# make test-faults: hosts that break, at many moments of a sweep each (MOMENTS); wants root, for namespaces.
# make bench: speed, side by side with the ordinary way; wants an idle machine.
# make bench-gpu: the rows and the tests that want a GPU; says so and ends with 2 where there is none.
# All set up .venv once, with the versions of constraints.txt. PIP_ARGS goes to pip, for example an index that has
# builds of torch without CUDA, which are a tenth of the size.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
MOMENTS ?= 20
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-faults lint bench bench-gpu

demo: $(READY)
	$(BIN)/grokscale sweep experiments/quickstart.toml

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-faults: $(READY)
	GROKSCALE_FAULT_MOMENTS=$(MOMENTS) $(BIN)/python -m pytest -m fault tests/faults $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --write benchmarks/RESULTS.md

bench-gpu: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gpu --write benchmarks/RESULTS-GPU.md
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu tests

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "grokscale needs Python 3.11 or later; name one with make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@
