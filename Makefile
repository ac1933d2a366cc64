# Each target makes what it needs: a .venv with the package in it. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
# What `make study` looks at: five kinds of flowers, from a folder or, downloaded, of tfds.
DATA ?= $(firstword $(wildcard ../shared/data/flower_photos) tf_flowers)

.PHONY: quickstart study bench docs test lint clean

quickstart: .venv/installed
	$(BIN)/python -m vit_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

study: .venv/installed
	$(BIN)/python -m benchmarks.study $(DATA) --workdir=runs/study

bench: .venv/installed
	$(BIN)/pip install -q -e ".[bench]"
	$(BIN)/python -m benchmarks.throughput Ti/16 S/16 B/16 --json=runs/bench/throughput.json
	$(BIN)/python -m benchmarks.products Ti/16 S/16 B/16 --json=runs/bench/products.json
	$(BIN)/python -m benchmarks.input_pipeline --json=runs/bench/input_pipeline.json
	$(BIN)/python -m benchmarks.startup --json=runs/bench/startup.json
	$(BIN)/python -m benchmarks.scaling Ti/16 --json=runs/bench/scaling.json
	$(BIN)/python -m benchmarks.memory B/16 --json=runs/bench/memory.json
	$(BIN)/python -m benchmarks.soak --json=runs/bench/soak.json

docs: .venv/installed
	$(BIN)/pip install -q -e ".[docs]"
	$(BIN)/python docs/make.py

test: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

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
