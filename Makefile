# Each target first makes what it needs: .venv with the package. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
# The data of `make study`: five kinds of flowers from a folder, or from tfds, which downloads them.
DATA ?= $(firstword $(wildcard ../shared/data/flower_photos) tf_flowers)
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

.PHONY: quickstart study bench docs test test-fast check clean

quickstart: .venv/installed
	$(BIN)/python -m vit_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
	@printf '%s\n' '' 'Next, paste these lines:' '' \
	  'source .venv/bin/activate' \
	  'python -m vit_jax.predict runs/quickstart docs/flowers' \
	  'python -m vit_jax.visualize runs/quickstart docs/flowers --out=runs/report' \
	  'python -m vit_jax.main --config=configs/pretrain.py:Conv+Nano/16,tf_flowers --workdir=runs/photos' \
	  '' 'The last one trains on photos: it downloads 3,670 of them, 229 MB. To train on your own, write their' \
	  'folder in place of tf_flowers. It has a subfolder of images for each class.'

study: .venv/installed
	$(BIN)/python -m benchmarks.study $(DATA) --workdir=runs/study

bench: .venv/installed
	$(BIN)/pip install -q -e ".[bench]"
	$(BIN)/python -m benchmarks.throughput Ti/16 S/16 B/16 --json=runs/bench/throughput.json
	$(BIN)/python -m benchmarks.serving Ti/16 S/16 B/16 --json=runs/bench/serving.json
	$(BIN)/python -m benchmarks.matmuls Ti/16 S/16 B/16 --json=runs/bench/matmuls.json
	$(BIN)/python -m benchmarks.input_pipeline --json=runs/bench/input_pipeline.json
	$(BIN)/python -m benchmarks.startup --json=runs/bench/startup.json
	$(BIN)/python -m benchmarks.scaling Ti/16 --json=runs/bench/scaling.json
	$(BIN)/python -m benchmarks.memory B/16 --json=runs/bench/memory.json
	$(BIN)/python -m benchmarks.soak --json=runs/bench/soak.json

docs: .venv/installed
	$(BIN)/pip install -q -e ".[docs]"
	$(BIN)/python docs/make.py

# Style, format and types: seconds. Run it before every commit.
check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The core of every folder: under 3 minutes on two cores.
test-fast: .venv/installed-dev
	$(PYTEST) -m "not slow and not peers and not browser and not faults"

# All tests.
test: .venv/installed-dev
	$(PYTEST)

.venv/installed: setup.py
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("vit_jax needs Python 3.11 or \
	newer. $(PYTHON) is " + sys.version.split()[0] + ". Choose another: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

clean:
	rm -rf .venv
