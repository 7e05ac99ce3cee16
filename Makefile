# Everything a person or CI does here. Needs a POSIX shell and a Python 3.12 or 3.13 (.ci/find-python says where it
# looks); nothing else. `make` alone prints the list.

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run demo test lint deep bench clean
MAKEFLAGS += --no-print-directory --no-builtin-rules
export PYTHON

ARGS ?=
PYTEST = .venv/bin/python -m pytest

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=/path/to/python3.13 chooses the interpreter, ARGS='...' is passed on to serve, pytest or the benchmarks"

setup: ## build .venv from requirements.lock, every hash checked
	@.ci/setup

setup-dev:
	@.ci/setup dev

run: setup ## start the proxy on 127.0.0.1:8080 with ./policies.yaml, written first where there is none
	@if [ -e policies.yaml ]; then echo "for an agent's environment: eval \"\$$(.venv/bin/tollkeeper init)\""; \
	else .venv/bin/tollkeeper init; fi
	@exec .venv/bin/tollkeeper serve $(ARGS)

demo: setup-dev ## watch an allowed, a denied and a private call, then a forged log being caught
	@exec .venv/bin/python -m examples.demo $(ARGS)

# TEST_EXIT_FILE is for .ci/run: pytest's own exit code goes there and its closing line stays the last one printed
test: setup-dev ## install what the tests need and run all of them, lint and types included
	@.ci/setup-clients
	@$(PYTEST) $(ARGS); code=$$?; \
	if [ -n "$(TEST_EXIT_FILE)" ]; then echo $$code >"$(TEST_EXIT_FILE)"; else exit $$code; fi

lint: setup-dev ## ruff, ruff format and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

deep: setup-dev ## the long tests, and every property with many more examples
	@.ci/setup-clients
	@$(PYTEST) --hypothesis-profile=deep --timeout=0 -m "deep or hypothesis" $(ARGS)

bench: setup-dev ## measure against the goals, print the table and write docs/benchmarks.md
	@.venv/bin/python -m tests.bench $(ARGS)

clean: ## remove what setup and the tests made; never policies.yaml or state/
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist mutants tests/e2e/node_modules
	@find audit policies proxy tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
