# One command each. Everything depends on `setup`, which makes .venv from the pinned requirements once.
SHELL := /bin/bash
PY := .venv/bin/python
STAMP := .venv/.stamp
export OMP_NUM_THREADS ?= 1

.PHONY: run setup test check zoo bench experiments-transitions experiments-energy clean

run: setup
	$(PY) -m app

setup: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt
	@echo "Making .venv (once; a few minutes)"
	@if command -v uv >/dev/null 2>&1 && [ -z "$$PHASESCOPE_NO_UV" ]; then \
	  uv venv --quiet --allow-existing --python '>=3.11' .venv && uv pip install --quiet --compile-bytecode --python .venv/bin/python -r requirements-dev.txt; \
	else \
	  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; python3 is older"; exit 1; }; \
	  python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements-dev.txt; \
	fi
	@touch $(STAMP)

# two files at once: much of the time is waiting for servers and browsers
test: setup
	$(PY) -m pytest -n 2 --dist loadfile

check: setup
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PY) -m pytest tests/test_architecture.py

zoo: setup
	$(PY) -m backend.runs.zoo

bench: setup
	$(PY) -m benchmarks

# trains what is missing below runs/experiments and writes benchmarks/results/transitions; broken off, it goes on
experiments-transitions: setup
	$(PY) -m benchmarks.experiments transitions

# trains the energy presets below runs/experiments, runs the ten experiments on each, writes what they say
experiments-energy: setup
	$(PY) -m benchmarks.experiments energy

clean:
	rm -rf .venv artefacts .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
