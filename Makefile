# Two commands do everything on a fresh machine that has Python 3.11+ and make: `make run` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.PHONY: install run test check bench chaos year night lock format clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## prepare .venv from the locked requirements

$(VENV)/.installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "finalsale needs Python 3.11 or newer; this is " + sys.version)'
	@echo "installing into $(VENV) (once)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-dev.txt >&2
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . >&2
	@touch $@

run: install  ## a merchant's day against the sandbox, then stay up; ARGS="--once --json" ends by itself
	@$(BIN)/finalsale run $(ARGS)

test: install  ## every test, on embedded PostgreSQL and Valkey
	@$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

check: install  ## format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install  ## let ruff format and fix what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install  ## intake and judgement beside their baselines in one run; ARGS="--json"
	@$(BIN)/python -m bench $(ARGS)

chaos: install  ## the long fault campaign: kill -9, empty Redis, restart Postgres; ARGS="--minutes 10 --seed 1"
	@$(BIN)/python -m tests.chaos $(ARGS)

year: install  ## a merchant's year with 10,000 customers, whose books must close; ARGS="--json", ARGS="--customers 500 --seed 2"
	@$(BIN)/python -m tests.year $(ARGS)

night: install  ## the nightly run's campaign: lost webhooks, falsified books, faults, kill -9; ARGS="--objects 100000 --kills 50"
	@$(BIN)/python -m tests.night $(ARGS)

lock: install  ## lock the dependencies again, with hashes
	@$(BIN)/pip-compile -q --generate-hashes --allow-unsafe --strip-extras --no-emit-options --no-header -o requirements.txt pyproject.toml
	@$(BIN)/pip-compile -q --generate-hashes --allow-unsafe --strip-extras --no-emit-options --no-header --extra dev -c requirements.txt -o requirements-dev.txt pyproject.toml

clean:  ## remove the embedded servers' files; .venv stays
	@rm -rf .finalsale build dist *.egg-info
