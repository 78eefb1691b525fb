# `make demo` and `make test` work on a fresh machine: Python 3.10 or newer, make and a package index are all they need.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
ARGS    ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo showcase test format lint types imports check docs install hooks peers clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  ARGS=...      is handed on by demo, test, docs and peers: make test ARGS='-k steering'"
	@echo "  WORKERS=...   is the number of processes that test in (now: $(WORKERS))"
	@echo "  PYTHON=...    is the Python that .venv is made with (now: $(PYTHON))"

demo: $(STAMP) ## Steer and compare the two built-in models over the built-in sentences
	$(BIN)/llm-entropy predict --config configs/quickstart.yaml $(ARGS)

showcase: $(STAMP) ## Extract a vector from a real model of 135 million parameters, judge it, and see what it writes
	$(BIN)/python -m tools.showcase

test: $(STAMP) ## Run the tests, with coverage
	$(BIN)/python -m pytest --cov=llm_entropy -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

format: $(STAMP) ## Rewrite the code in the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## Check the types of the package
	$(BIN)/mypy

imports: $(STAMP) ## Check that imports go down only, floor by floor
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.docs ## Build the documentation into build/docs, where every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet $(ARGS)

check: lint types imports test ## All of the gate: lint, types, imports, test

install: $(STAMP) ## Make .venv and install; the targets above do so by themselves

hooks: $(STAMP) ## Let git run the checks before each commit
	$(BIN)/pre-commit install

peers: $(STAMP) ## Make the environments in which `python -m benchmarks.peers` runs other programs
	$(BIN)/python -m benchmarks.peers --setup $(ARGS)

clean: ## Remove .venv, caches and builds; the runs in analysis_outputs stay
	rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find llm_entropy tests -type d -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

# The stamp is made last: an installation that was broken off is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "$(PYTHON) is Python %s, but 3.10 or newer is \
	needed: name one, as in  make $(MAKECMDGOALS) PYTHON=python3.12" % sys.version.split()[0])'
	@echo "Installing into $(VENV): a few minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
