# Each target makes `.venv` by itself when it is not there, from constraints.txt, and only once.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help install demo test test-all lint format bench docs clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(STAMP) ## Make the environment that the other targets use.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fieldmark needs Python 3.11 or newer: make install PYTHON=python3.12"; exit 1; }
	@echo "Making .venv, about two minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[tensorflow,dev]'
	@touch $@

demo: install ## Draw birds, check, train, evaluate, diagnose, explain, report; a few minutes.
	@rm -rf build/demo
	$(BIN)/fieldmark draw build/demo/birds --per-class 150 --size 64
	$(BIN)/fieldmark check build/demo/birds --html build/demo/birds.html
	$(BIN)/fieldmark train build/demo/birds --minutes 1.5 --out build/demo/run
	$(BIN)/fieldmark evaluate build/demo/run
	$(BIN)/fieldmark diagnose build/demo/run
	$(BIN)/fieldmark explain build/demo/run
	$(BIN)/fieldmark report build/demo/run

test: install ## Run the tests that take seconds.
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

test-all: install ## Run all tests, those that take minutes too.
	$(BIN)/python -m pytest

lint: install ## Check style and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install ## Put the code into the project's format.
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: install ## Time us against others, in one run.
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/raw_pixels.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/cache.py
	$(BIN)/python benchmarks/batches.py
	$(BIN)/python benchmarks/listing.py
	$(BIN)/python benchmarks/duplicates.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/demo.py --seeds 1

docs: demo ## Make the generated pages and pictures anew.
	$(BIN)/python docs/make.py

clean: ## Remove what the other targets made.
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
