# Everything runs in .venv, which is created on demand from requirements-ci.txt: `make test` works in a fresh clone.

PYTHON      ?= python3
DEMO_FRAMES ?= 96
# tests run on one thread each
TESTERS     ?= $(shell $(PYTHON) -c "import os; print(min(os.cpu_count() or 1, 8))")

BIN   := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-faults test-batch test-signals test-multinode test-slurm test-gpu bench-denoiser bench-exchange \
	bench-memory bench-scaling bench-decode bench-e2e bench-gpu bench-all paper-table mini reference docs lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## install the project and what its tests need into .venv

demo: $(READY) ## generate build/demo/red-ball.mp4 with the embedded model (DEMO_FRAMES=96)
	$(BIN)/vinfinity generate --prompt "a red ball bouncing over green grass" \
		--frames $(DEMO_FRAMES) --out build/demo/red-ball.mp4 --overwrite

test: $(READY) ## run all tests except the slow ones, some at a time (TESTERS=1: one after the other)
	$(BIN)/python -m pytest -m "not slow" -n $(TESTERS) --dist worksteal

test-slow: $(READY) ## run the slow tests
	$(BIN)/python -m pytest -m slow

test-faults: $(READY) ## kill runs in every phase, 60 times, and resume them (ARGS="--kills 100 --seed 1")
	$(BIN)/python tests/campaigns/faults.py $(ARGS)

test-batch: $(READY) ## kill a batch of 50 videos five times, and look for lost ones (ARGS="--gpus 2 --seed 1")
	$(BIN)/python tests/campaigns/batch.py $(ARGS)

test-signals: $(READY) ## send runs signals at all moments, and look for lost ones: 40 minutes (ARGS="--kinds SIGINT/2")
	$(BIN)/python tests/campaigns/signals.py $(ARGS)

test-multinode: $(READY) ## run on two nodes, as network namespaces, and compare with one (root, iproute2)
	tests/campaigns/multinode.sh

test-slurm: $(READY) ## preempt, requeue and compare on a real SLURM, installed if missing (root, Debian)
	tests/campaigns/slurm.sh

test-gpu: $(READY) ## try this machine's GPUs: ten minutes on one, fifteen on several (ARGS="--device cpu --quick")
	PYTHONPATH=tests $(BIN)/python tests/campaigns/gpu.py $(ARGS)

bench-denoiser: $(READY) ## time a call of the UNet or transformer by precision, and against diffusers (ARGS="--compile")
	$(BIN)/vinfinity bench denoiser $(ARGS)
	$(BIN)/python benchmarks/rivals/unet.py --frames 16
	$(BIN)/python benchmarks/rivals/unet.py --frames 96 --rounds 3
	$(BIN)/python benchmarks/rivals/unet.py --model medium --frames 16 --rounds 3

bench-exchange: $(READY) ## count what ranks send, and time it (ARGS="--ranks 8 --timed 2 --device cpu")
	$(BIN)/vinfinity bench exchange $(ARGS)

bench-memory: $(READY) ## trace the memory of a UNet call (ARGS="--frames 64 --frames 2300 --check")
	$(BIN)/vinfinity bench memory $(ARGS)

bench-scaling: $(READY) ## time a call on one rank and on several (ARGS="--ranks 2 --device cpu")
	$(BIN)/vinfinity bench scaling $(ARGS)

bench-decode: $(READY) ## time decoding and encoding, apart and together (ARGS="--frames 2000 --size 512x320")
	$(BIN)/vinfinity bench decode $(ARGS)

bench-e2e: $(READY) ## time whole runs of several lengths (ARGS="--frames 500 --frames 5000 steps=4")
	$(BIN)/vinfinity bench e2e $(ARGS)

bench-gpu: $(READY) ## measure this machine's GPUs against the plan (ARGS="--keep-going")
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-all: bench-denoiser bench-memory bench-exchange bench-scaling bench-decode bench-e2e ## run all benchmarks

paper-table: $(READY) ## print the paper's table of VBench scores with our lines ("not run" where they were not)
	$(BIN)/python benchmarks/vbench_scores.py table $(ARGS)

mini: $(READY) ## train the embedded model from nothing: hours (ARGS="--device cuda")
	$(BIN)/python training/mini/recipe.py $(ARGS)

reference: $(READY) ## regenerate docs/reference and the reading order of the README
	$(BIN)/python scripts/reference.py
	$(BIN)/python -m scripts.figures

docs: $(READY) ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

lint: $(READY) ## check style, import rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove everything that was built, except .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml requirements-ci.txt requirements-ci-nodeps.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vinfinity needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-ci.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-ci-nodeps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
