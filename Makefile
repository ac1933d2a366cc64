# Each target makes what it needs: a .venv with the package in it. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
# What `make study` looks at: five kinds of flowers, from a folder or, downloaded, of tfds.
DATA ?= $(firstword $(wildcard ../shared/data/flower_photos) tf_flowers)

.PHONY: quickstart study docs test lint clean

quickstart: .venv/installed
	$(BIN)/python -m vit_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

study: .venv/installed
	$(BIN)/python -m benchmarks.study $(DATA) --workdir=runs/study

docs: .venv/installed
	$(BIN)/pip install -q -e ".[docs]"
	$(BIN)/python docs/make.py

test: .venv/installed-test
	$(BIN)/python -m pytest

lint: .venv/installed-test
	$(BIN)/pip install -q ruff
	$(BIN)/ruff check .

.venv/installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf .venv
