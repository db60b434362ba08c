# Everything here sets itself up: a machine with Python 3.11+ and make needs nothing else.
# `.venv/.stamp` is newer than pyproject.toml and constraints.txt once their packages are installed.

PYTHON ?= python3
DATA ?= ../shared/data/tofu
SPLIT ?= forget10
BIN := .venv/bin
STAMP := .venv/.stamp

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check bench clean

help: ## List these targets
	@echo "Start with:  make demo   (the whole story in about a minute)   or   make test"
	@echo
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "PYTHON=python3.12 chooses the interpreter for a new .venv (now: $(PYTHON))."

install: $(STAMP) ## Create .venv and install the pinned stack (done once)

demo: $(STAMP) ## Unlearn, attack, audit and report on the embedded model
	$(BIN)/expunge demo

test: $(STAMP) ## Fast tests, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(STAMP) ## The tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(STAMP) ## Lint, types, layers and caps
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/checks.py

bench: $(STAMP) ## TOFU leaderboard (DATA=folder SPLIT=forget10 ARGS="--limit-authors 20")
	$(BIN)/expunge bench tofu --data $(DATA) --split $(SPLIT) $(ARGS)

clean: ## Remove .venv and caches; runs/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# uv is several times faster than pip but does not read pip's settings, so the place of local wheels is handed on.
# Without --compile-bytecode the first start would compile everything. Where uv cannot be had, pip does the same.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' is $$($(PYTHON) -V 2>&1); Expunge needs Python 3.11 or newer." \
	       "Name one: make PYTHON=python3.11 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
	  echo "make: could not create .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf .venv; exit 2; }
	@echo "Installing the pinned stack into .venv (once; a few minutes) ..."
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check uv && \
	    UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode \
	      -c constraints.txt -e ".[dev]"; then :; else \
	  echo "uv did not do it; trying pip ..."; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"; \
	fi
	@touch $(STAMP)
