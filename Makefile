# Every target sets up what it needs: a virtual environment in .venv with the locked packages, and a llama-server.
#
#   PYTHON=python3.13 make test      another Python (3.11 or newer)
#   make test ARGS="-k relay -x"     arguments for pytest

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
LOCK_FLAGS ?=
SOURCES := auxot tests $(patsubst %/,%,$(sort $(dir $(wildcard scripts/*.py))))

# 9xx: optional rules, a checkpoint in every function. 110: ruff has it, with exceptions by path. 114 wants a list of all
# functions that take task_status, 128 does not see it passed on. 127: to leave httpx is a change of its own.
ASYNC_FLAGS := --disable ASYNC9,ASYNC110,ASYNC114,ASYNC127,ASYNC128

.DEFAULT_GOAL := help
.PHONY: help demo run test chaos soak check format image bench build lock clean llama agents clients

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed llama ## Ask a tiny model one question through the whole product, in each API
	@$(BIN)/auxot demo $(ARGS)

run: $(VENV)/.installed ## Run the router with the settings in ./.env (make them: .venv/bin/auxot-router setup --write-env)
	@$(BIN)/auxot-router $(ARGS)

test: $(VENV)/.installed-dev llama ## Run all tests, with a real llama-server and, where it is installed, a real redis-server
	@AUXOT_TEST_LLAMA_SERVER="$${AUXOT_TEST_LLAMA_SERVER:-$$($(BIN)/auxot-worker llama find)}" \
		$(BIN)/python -m pytest $(ARGS)

chaos: ## Break real processes at random for 30 minutes (AUXOT_TEST_CHAOS_S, AUXOT_TEST_SEED) and print what came of it
	@AUXOT_TEST_CHAOS_S="$${AUXOT_TEST_CHAOS_S:-1800}" $(MAKE) test ARGS="tests/faults/test_chaos.py -s -o faulthandler_timeout=0 $(ARGS)"

soak: ## Watch memory for 20 minutes (AUXOT_TEST_SOAK_S) of mixed load, and print the curve
	@AUXOT_TEST_SOAK_S="$${AUXOT_TEST_SOAK_S:-1200}" $(MAKE) test ARGS="tests/faults/test_soak.py -s -o faulthandler_timeout=0 $(ARGS)"

agents: ## Install the coding agents that some tests run: 1 GB into ~/.auxot, by npm
	@scripts/install_agents.sh

clients: ## Install the client libraries that some tests run: 450 MB into ~/.auxot
	@PYTHON="$(PYTHON)" scripts/install_clients.sh

check: $(VENV)/.installed-dev ## Check format, lint, async rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/flake8-async $(ASYNC_FLAGS) $$(find $(SOURCES) -name '*.py')
	$(BIN)/mypy $(SOURCES)

format: $(VENV)/.installed-dev ## Format the code and apply the safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

image: $(VENV)/.installed ## Try the router's Containerfile without a builder (as root)
	@$(BIN)/python scripts/check_containerfile.py $(ARGS)

bench: $(VENV)/.installed ## Measure what the router adds on this machine (ARGS="--quick", "--only 64,full")
	@$(BIN)/auxot bench $(ARGS)

build: $(VENV)/.installed-dev ## Build the wheel and the source package into dist/
	$(BIN)/python -m build --outdir dist

lock: $(VENV)/.installed ## Renew the locks after a change of pyproject.toml or scripts/clients.in (newest of all: LOCK_FLAGS=--upgrade)
	$(PIP) install uv
	$(call compile_lock,pyproject.toml,requirements.lock)
	$(call compile_lock,pyproject.toml,requirements-dev.lock,--extra dev --constraint requirements.lock)
	$(call compile_lock,scripts/clients.in,scripts/clients.lock)

compile_lock = $(BIN)/uv pip compile --quiet $(1) --output-file $(2) $(3) $(LOCK_FLAGS) \
	--universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"

clean: ## Remove what these targets have made here (not the llama-server in ~/.auxot)
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

llama: $(VENV)/.installed
	@[ -n "$$AUXOT_TEST_LLAMA_SERVER" ] || $(BIN)/auxot-worker llama find > /dev/null 2>&1 || { \
		echo "No llama-server yet: building one, about 5 minutes on two cores."; \
		$(BIN)/auxot-worker llama build; }

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Auxot needs Python 3.11 or newer; $(PYTHON) is not. Try: make PYTHON=python3.13"; exit 1; }
	@echo "Installing the locked packages into $(VENV), about half a minute."
	@$(PYTHON) -m venv $(VENV) || { \
		echo "No virtual environment: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	@echo "Installing the locked tools for tests and checks into $(VENV), about half a minute."
	@$(PIP) install --require-hashes --requirement requirements-dev.lock
	@touch $@
