# Everything runs in .venv, which is made on demand from requirements-ci.txt: `make test` works in a fresh clone.

PYTHON      ?= python3
DEMO_FRAMES ?= 96

BIN   := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-multinode test-faults test-slurm bench-unet bench-memory bench-exchange \
	bench-scaling bench-decode bench-e2e bench-all lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## install the project and what its tests need into .venv

demo: $(READY) ## generate build/demo/red-ball.mp4 with the embedded model (DEMO_FRAMES=96)
	$(BIN)/vinfinity generate --prompt "a red ball bouncing over green grass" \
		--frames $(DEMO_FRAMES) --out build/demo/red-ball.mp4 --overwrite

test: $(READY) ## run the tests, but for the slow ones
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY) ## run the slow tests
	$(BIN)/python -m pytest -m slow

test-multinode: $(READY) ## two nodes as network namespaces give one video (root, iproute2)
	tests/campaigns/multinode.sh

test-faults: $(READY) ## kill runs in every phase, 60 times, and resume them (ARGS="--kills 100 --seed 1")
	$(BIN)/python tests/campaigns/faults.py $(ARGS)

bench-unet: $(READY) ## a UNet call by precision, and against diffusers' (ARGS="--compile")
	$(BIN)/vinfinity bench unet $(ARGS)
	$(BIN)/python benchmarks/rivals/unet.py --frames 16
	$(BIN)/python benchmarks/rivals/unet.py --frames 96 --rounds 3
	$(BIN)/python benchmarks/rivals/unet.py --model medium --frames 16 --rounds 3

bench-scaling: $(READY) ## what a second rank gains here (ARGS="--ranks 2 --device cpu")
	$(BIN)/vinfinity bench scaling $(ARGS)

bench-e2e: $(READY) ## whole runs: time and memory against length (ARGS="--frames 500 --frames 5000 steps=4")
	$(BIN)/vinfinity bench e2e $(ARGS)

bench-all: bench-unet bench-memory bench-exchange bench-scaling bench-decode bench-e2e ## all of them, one after the other

test-slurm: $(READY) ## preempt, requeue and compare on a real SLURM, installed where missing (root, Debian)
	tests/campaigns/slurm.sh

bench-exchange: $(READY) ## what ranks send, and what that costs here (ARGS="--ranks 8 --timed 2 --device cpu")
	$(BIN)/vinfinity bench exchange $(ARGS)

bench-memory: $(READY) ## what a UNet call holds at most (ARGS="--frames 64 --frames 2300 --check")
	$(BIN)/vinfinity bench memory $(ARGS)

bench-decode: $(READY) ## decoding, encoding, both at once, and memory (ARGS="--frames 2000 --size 512x320")
	$(BIN)/vinfinity bench decode $(ARGS)

lint: $(READY) ## check style, import rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## put the code into the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove what was built, but for .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml requirements-ci.txt requirements-ci-nodeps.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vinfinity needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-ci.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-ci-nodeps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
