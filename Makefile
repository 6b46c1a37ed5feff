# Everything runs in .venv, which is made when it is needed: `make quick` and `make test` are enough.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTHON_CODE := src tests workflow/scripts
SNAKEMAKE_CODE := Snakefile workflow/Snakefile rules
# snakefmt calls shfmt, which lies beside it.
SNAKEFMT := PATH="$(abspath $(BIN)):$$PATH" snakefmt --line-length 120

# One thread for each process: models this small gain nothing from more.
export OMP_NUM_THREADS := 1

.PHONY: help quick study test test-slurm bench curves lint format clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

quick: $(READY) ## the study in small: results/quick/RESULTS.md, in minutes
	$(BIN)/snakemake --profile profiles/quick

study: $(READY) ## the whole study on this machine: results/RESULTS.md, in days
	$(BIN)/snakemake --profile profiles/local

test: $(READY) ## the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slurm: $(READY) ## faults of all kinds on a SLURM cluster, started here (Debian, as root)
# Three at a time on two cores: half of their time they wait for SLURM.
	$(BIN)/python -m pytest tests/slurm --numprocesses 3 --dist worksteal

bench: $(READY) ## time the engines on this machine: results/bench/ and BENCHMARKS.md
	$(BIN)/python workflow/scripts/bench.py

curves: $(READY) ## learning curves of both engines over seeds, into BENCHMARKS.md
	$(BIN)/python workflow/scripts/curves.py

lint: $(READY) ## formats, lint and types
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/ruff check $(PYTHON_CODE)
	$(SNAKEFMT) --check $(SNAKEMAKE_CODE)
	$(BIN)/snakemake --lint
	$(BIN)/mypy

format: $(READY) ## format all code, write config/schema.json and docs/reference.md anew
	$(BIN)/ruff format $(PYTHON_CODE)
	$(BIN)/ruff check --fix $(PYTHON_CODE)
	$(SNAKEFMT) $(SNAKEMAKE_CODE)
	$(BIN)/python -m rewardgrid schema
	$(BIN)/python -m rewardgrid reference

clean: ## remove the environment and caches; results stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or later is needed, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' cannot make virtual environments." \
	    "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	@touch $@
