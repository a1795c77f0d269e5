# Everything runs from a virtual environment in the project; `make test` and `make demo` set it up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test prediction lint types floors check clean

setup: $(READY)

# pip itself is renewed first: dependency groups need pip 25.1 or later.
$(READY): pyproject.toml setup.py src/isometry/sampling/_native.c constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	PIP_CONSTRAINT=$(abspath constraints.txt) $(BIN)/python -m pip install --quiet --editable ".[all]" --group dev
	@touch $@

demo: setup
	$(BIN)/isometry compare --demo --out out

test: setup
	$(BIN)/python -m pytest -n auto

# Prediction against measurement over real architectures; half an hour and more on two cores.
prediction: setup
	PIP_CONSTRAINT=$(abspath constraints.txt) $(BIN)/python -m pip install --quiet --group corpus
	$(BIN)/python benchmarks/prediction.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: setup
	$(BIN)/mypy

floors: setup
	$(BIN)/lint-imports

check: lint types floors test

clean:
	rm -rf $(VENV) out build src/isometry/sampling/*.so
