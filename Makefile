# The commands of this repository. Each does its own set-up from nothing but python3 (3.10 or newer) and make.

.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# The first interpreter that really runs (version managers leave shims that refuse) and can build a virtual environment.
ifndef PYTHON
PYTHON := $(shell for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do \
	if $$name -c 'import sys, ssl, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; \
	then echo $$name; break; fi; done)
endif

# Processes for the tests: most of them wait for servers and workers, so that two cores are half idle with two.
TEST_PROCESSES ?= 3
PYTEST := $(BIN)/python -m pytest

# stamp(name): the file that says "installed with these extras, and pyproject.toml has not changed since".
stamp = $(VENV)/.installed-$(1)

.PHONY: help
help:
	@echo 'make demo          nothing is lost: a Redis, workers, thousands of tasks, a kill -9, and the account'
	@echo 'make chat          a chat in the browser on all of it: states, dead letters, kills, the dashboard'
	@echo 'make test          the test suite                          ARGS="-k retry" narrows it'
	@echo 'make browser-tests dashboard and chat in a headless Chromium'
	@echo 'make check         what CI runs: lint, format, types, layers, then the test suite'
	@echo 'make lint          ruff, mypy, import-linter and luacheck only'
	@echo 'make format        rewrite the code in the house style'
	@echo 'make bench         throughput beside a stock worker and a bare Redis loop'
	@echo 'make bench-scale   curves of what a task costs as backlog, queues, children, sizes and delays grow'
	@echo 'make faults        load while processes and servers are killed, and the verdict   ARGS="--profile long"'
	@echo 'make fault-tests   the tests of single faults that make test leaves out'
	@echo 'make test-cluster  workers on a Redis Cluster whose slots move and nodes die; acceptance tests and faults with nothing but one'
	@echo 'make soak          load and reconnects for an hour: does anything grow?           ARGS="--minutes 10"'
	@echo "make celery-suite  Celery's own tests, run on streams      ARGS=--quick, ARGS=test_beat.py"
	@echo 'make clean         remove what the other targets made'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter (now: $(or $(PYTHON),none found)).'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'No Python 3.10 or newer with venv and pip found; install one (Debian: apt install python3-venv) or set PYTHON=/path/to/python3.' >&2; exit 2; }
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing celery-streams[$*]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

.PHONY: demo
demo: $(call stamp,demo)
	@$(BIN)/celery-streams demo $(ARGS)

.PHONY: chat
chat: $(call stamp,demo) $(call stamp,django)
	@$(BIN)/python examples/chat/start.py $(ARGS)

.PHONY: test
test: $(call stamp,test)
	@$(PYTEST) -n $(TEST_PROCESSES) --dist worksteal $(ARGS)

.PHONY: check
check: lint
	@$(MAKE) test

.PHONY: lint
lint: $(call stamp,test) $(call stamp,lint)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@if command -v luacheck >/dev/null; then luacheck --quiet celery_streams/lua; \
	else echo 'No luacheck found (Debian: apt install lua-check): the Lua scripts were not checked.'; fi

.PHONY: format
format: $(call stamp,lint)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# axe-core judges accessibility; it is a tool of the tests only, and comes with npm where there is one.
.PHONY: browser-tests
browser-tests: $(call stamp,test) $(call stamp,browser)
	@if command -v npm >/dev/null && [ ! -f $(VENV)/axe.min.js ]; then \
		cd $(VENV) && npm pack --silent axe-core@4.14.1 >/dev/null && tar xzf axe-core-4.14.1.tgz && \
		mv package/axe.min.js . && rm -r package axe-core-4.14.1.tgz; fi
	@$(PYTEST) -m 'not faults' tests/browser $(ARGS)

.PHONY: bench
bench: $(call stamp,test)
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-scale
bench-scale: $(call stamp,test)
	@mkdir -p .bench
	@$(BIN)/python -m benchmarks.scale --save .bench/scale.json --svg .bench/scale.svg $(ARGS)

.PHONY: faults
faults: $(call stamp,test)
	@$(BIN)/python -m tests.faults $(ARGS)

.PHONY: fault-tests
fault-tests: $(call stamp,test)
	@$(PYTEST) -m faults -n $(TEST_PROCESSES) --dist worksteal tests/faults $(ARGS)

# What else is about queues and workers, wherever they are, and so must hold on a Redis Cluster; tests/support/on_cluster.py
# says which of the integration tests do, and why the others cannot.
ON_CLUSTER := tests/acceptance tests/faults tests/integration

.PHONY: test-cluster
test-cluster: $(call stamp,test)
	@$(PYTEST) -m 'not faults' -n $(TEST_PROCESSES) --dist worksteal tests/cluster $(ARGS); status=$$?; \
	$(PYTEST) -n $(TEST_PROCESSES) --dist worksteal --on-cluster $(ON_CLUSTER) $(ARGS) && exit $$status

.PHONY: soak
soak: $(call stamp,test)
	@$(BIN)/python -m tests.faults.soak $(ARGS)

.PHONY: celery-suite
celery-suite: $(call stamp,test)
	@$(BIN)/python -m tests.celery_suite $(ARGS)

.PHONY: clean
clean:
	@rm -rf $(VENV) .celery-suite build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
