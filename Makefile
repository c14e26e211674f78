# The commands of the README. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := stableopt tests benchmarks examples conftest.py

.PHONY: help demo test test-all mutants lint format
.PHONY: gallery bench learning-rate gauntlet zoo soak compatibility gpu docs clean
help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# One stamp per set of extras, so that a target installs only what it needs.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-cli,report ## train a small GPT, inject a fault, watch it survive (ARGS=...)
	$(BIN)/stableopt demo $(ARGS)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

test: $(VENV)/.installed-test ## run the tests on two cores, but slow ones and mutants (ARGS=...)
	$(PYTEST) -n 2 --durations=10 -m 'not slow and not mutant' $(ARGS)
	$(PYTEST) README.md docs  # their blocks share names

test-all: $(VENV)/.installed-test ## run every test but the mutants (a quarter of an hour, ARGS=...)
	$(PYTEST) -n 2 -m 'not mutant' $(ARGS)
	$(PYTEST) README.md docs

mutants: $(VENV)/.installed-test ## break the code in each known way, and see a test fail (ten minutes)
	$(PYTEST) -n 2 -m mutant tests/mutants $(ARGS)

lint: $(VENV)/.installed-lint $(VENV)/.installed-test ## ruff and mypy
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.installed-lint ## let ruff put the code into shape
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/.installed-bench ## measure overhead, snapshots, sensors and transforms (under an hour)
	$(BIN)/python -m pytest benchmarks -q -p no:xdist
	$(BIN)/python -m benchmarks.overhead $(ARGS)
	$(BIN)/python -m benchmarks.fixed_cost
	$(BIN)/python -m benchmarks.ranks
	$(BIN)/python -m benchmarks.snapshots
	$(BIN)/python -m benchmarks.sensors
	$(BIN)/python -m benchmarks.sensor_cost
	$(BIN)/python -m benchmarks.collapse
	$(BIN)/python -m benchmarks.closed_loop
	$(BIN)/python -m benchmarks.compiles
	$(BIN)/python -m benchmarks.trackers
	$(BIN)/python -m benchmarks.import_time
	$(BIN)/python -m benchmarks.readme

compatibility: $(VENV)/.installed-test ## what works with which trainer and tracker (two minutes)
	$(BIN)/python -m benchmarks.compatibility
	$(BIN)/python -m benchmarks.readme

learning-rate: $(VENV)/.installed-bench ## sensitivity to the learning rate (an hour on two cores, resumes)
	$(BIN)/python -m benchmarks.learning_rate $(ARGS)
	$(BIN)/python -m benchmarks.readme

gauntlet: $(VENV)/.installed-bench ## every fault, ours and six rivals (half an hour on two cores)
	$(BIN)/python -m benchmarks.faults $(ARGS)
	$(BIN)/python -m benchmarks.readme

zoo: $(VENV)/.installed-bench ## healthy but unusual trainings, bare and wrapped (five minutes)
	$(BIN)/python -m benchmarks.zoo $(ARGS)
	$(BIN)/python -m benchmarks.readme

soak: $(VENV)/.installed-bench ## 100,000 healthy steps, in which nothing may happen (ten minutes)
	$(BIN)/python -m benchmarks.soak $(ARGS)

gpu: ## tests and measurements on a GPU, with the python at hand; installs nothing
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu $(ARGS)

gallery: $(VENV)/.installed-cli,report ## draw the pictures of the documentation (two minutes)
	$(BIN)/python examples/gallery.py docs/gallery
	cp benchmarks/results/lr_sensitivity.svg docs/gallery/learning-rate.svg

docs: $(VENV)/.installed-docs ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
