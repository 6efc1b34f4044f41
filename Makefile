# SPDX-License-Identifier: Apache-2.0
# Needs python3 (3.11 to 3.13, with venv), make and g++; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# Tests of one file share what they build, and the worker that is ready takes from the other.
ON_ALL := -n $(WORKERS) --dist worksteal

.PHONY: setup demo test test-all bench docs lint clean check-system

setup: .venv/.run

demo: .venv/.run
	$(BIN)/python -m atriplex.gen.demo

test: .venv/.dev lint
	@echo "left out: tests marked long, as 10,000 transfers of every preset; make test-all runs them"
	$(BIN)/pytest $(ON_ALL) -m "not long"

test-all: .venv/.dev lint
	$(BIN)/pytest $(ON_ALL)

bench: .venv/.dev
	$(BIN)/python -m atriplex.gen.bench -o docs/benchmarks.md
	$(BIN)/python -m atriplex.gen.pages docs/blocks

docs: .venv/.dev
	$(BIN)/python -m atriplex.gen.pages docs/blocks

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv build dist out *.egg-info .pytest_cache .ruff_cache

.venv/.run: pyproject.toml | check-system
	$(call install,sim$(,)fpga$(,)asic)

.venv/.dev: pyproject.toml | check-system
	$(call install,dev)
	@touch .venv/.run

# An old environment is kept if it works; its packages are brought up to date.
, := ,
define install
@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
@echo "installing atriplex[$(1)] and what it needs into .venv (a minute or two)"
@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(1)]'
@touch $@
endef

check-system:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing; get it with: apt-get install python3 python3-venv"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "Python 3.11 to 3.13 is needed, this is $$($(PYTHON) --version); name another one: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "python3 has no venv module; get it with: apt-get install python3-venv"; exit 2; }
	@command -v g++ >/dev/null || { echo "g++ is missing; get it with: apt-get install g++"; exit 2; }
