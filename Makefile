# `make` alone explains itself. Every target first sets up whatever it needs.

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak test-gpu check format bench results notebooks reliability schedules fuzz proto lock clean
.DELETE_ON_ERROR:

help:  ## this list
	@echo "Cloister: federated training over data that never leaves its owner."
	@echo
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Needs Python 3.11 or newer; to name one: make setup PYTHON=python3.12"
	@echo "Options pass through: make test ARGS='tests/privacy -x'"

setup: $(INSTALLED)  ## .venv with the locked packages; once, and again only when they change

$(INSTALLED): pyproject.toml requirements/lock.txt requirements/torch.txt requirements/install.sh
	@sh requirements/install.sh "$(PYTHON)"
	@touch $@

demo: setup  ## a server and three hospitals on this machine, training together
	@$(BIN)/cloister demo $(ARGS)

# Each of dozens of processes would compile all modules again where the environment keeps Python from writing them.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test: setup  ## all tests but those that run for minutes (those: make soak)
	@$(PYTEST) $(ARGS)

soak: setup  ## the tests that run for minutes
	@$(PYTEST) -m soak $(ARGS)

# No test may be skipped for want of a device that is there: the first line says which one it is.
test-gpu: setup  ## the tests that use a CUDA device, where there is one
	@if $(BIN)/python -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null; then \
		$(PYTEST) -m gpu --numprocesses=1 tests/client $(ARGS); \
	else echo "This machine has no usable CUDA device; nothing is tested."; fi

check: setup  ## format, lint and types, exactly as CI checks them
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright & second=$$!; $(BIN)/mypy; first=$$?; wait $$second && exit $$first

format: setup  ## format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: setup  ## measure, side by side with others
	@$(BIN)/cloister bench $(ARGS)

results: setup  ## train every reference task and write docs/results.md (a part, in a minute: ARGS=--quick)
	@OMP_NUM_THREADS=1 $(BIN)/cloister bench results --write docs/results.md $(ARGS)

notebooks: setup  ## run simulations/examples and write docs/notebooks (one of them: ARGS=attacker)
	@OMP_NUM_THREADS=1 $(BIN)/python simulations/examples/notebooks.py $(ARGS)

reliability: setup  ## break processes, disks and lines, and look (one case: ARGS='--case cuts --seed 3')
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability $(ARGS)

schedules: setup  ## 5,000 runs with crashes, losses and lies, in virtual time (one again: ARGS='--seed 17')
	@OMP_NUM_THREADS=1 $(BIN)/python -m simulations.schedules $(ARGS)

# Not among the locked packages: it has wheels for few platforms.
fuzz: setup  ## search ten minutes for bytes that break a parser (less: ARGS='--seconds 60')
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet 'atheris>=2.3,<4'
	@$(BIN)/python -m tests.fuzz $(ARGS)

proto: setup  ## regenerate transport/cloister_pb2.* from transport/cloister.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. transport/cloister.proto

# Which of the locked packages an image has: see deploy/container.
NAMES := $(BIN)/uv pip compile --universal --python-version 3.11 --constraints requirements/lock.txt --no-annotate \
	--no-header --quiet
CUT := sed -n 's/==.*//p'

lock: setup  ## write requirements/lock.txt anew, and what images have of it (newer versions: ARGS=--upgrade)
	$(BIN)/uv pip compile pyproject.toml requirements/torch.txt --output-file requirements/lock.txt \
		--all-extras --universal --python-version 3.11 --generate-hashes \
		--excludes requirements/not-locked.txt --no-emit-package torch \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet $(ARGS)
	$(NAMES) pyproject.toml --extra sql --extra oidc --extra tracking | $(CUT) > deploy/container/server.names
	$(NAMES) pyproject.toml requirements/torch.txt --no-emit-package torch --excludes requirements/not-locked.txt \
		--extra client --extra imaging --extra sql --extra tracking | $(CUT) > deploy/container/agent.names
	echo hatchling | $(NAMES) - | $(CUT) > deploy/container/build.names

clean:  ## remove caches, builds and the demo's folder; .venv stays
	test ! -e demo/.cloister-demo || rm -rf demo
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info *.fab
	find cloister simulations server client strategies transport privacy tests \
		-type d -name __pycache__ -prune -exec rm -rf {} +
