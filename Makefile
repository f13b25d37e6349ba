# Needs Python 3.11+ and make; everything else comes from the package registries into .venv.
PYTHON ?= python3
BIN := .venv/bin
LOCK := deploy/lock

.PHONY: help setup native-check run stack check test test-long chaos bench bench-quick bench-growth pictures lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: .venv/.ready  ## make the virtual environment .venv
NATIVE := native/Cargo.toml native/Cargo.lock native/pyproject.toml $(wildcard native/src/*.rs native/src/*/*.rs)
.venv/.ready: $(LOCK)/development.txt pyproject.toml $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 $(MAKECMDGOALS)" if sys.version_info < (3, 11) else 0)'
	@echo "Making the virtual environment .venv: about two minutes the first time, and 200 MB"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python deploy/local/install.py $(LOCK)/development.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@if command -v cargo >/dev/null; then \
	  echo "Building the native engine with cargo: about a minute"; \
	  PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation ./native; \
	else \
	  echo "cargo was not found: the Python reference will translate spans, at many times the CPU. Install Rust and run make setup again to change that."; \
	fi
	@touch $@

native-check: setup  ## check and test the native engine; needs cargo
	cd native && cargo fmt --check && cargo clippy --locked --all-targets -- -D warnings && cargo test --locked --quiet

run: setup  ## start Kafka, Postgres, receiver, consumer, the page and demo traffic on this machine
	@exec $(BIN)/python -m deploy.local run

stack: setup  ## start Kafka and Postgres alone
	@exec $(BIN)/python -m deploy.local stack

check: setup  ## run lint, types, import rules, unit tests and the tests of the docs: a minute or two
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -q -n 2 -m "not long" tests/unit tests/conventions

# Each worker has a Kafka and a Postgres of its own. Tests wait for much of their time, so three keep two cores busy.
# The files with the longest tests come first, so that none runs alone at the end.
TEST_WORKERS ?= 3
test: check  ## run every test, against a real Kafka and a real Postgres
	@if command -v cargo >/dev/null; then $(MAKE) native-check; fi
	$(BIN)/pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder -m "not long" --durations=15 tests/faults tests/integration

test-long: setup  ## run the long forms of the fault tests
	$(BIN)/pytest -q -m long tests
	$(BIN)/pytest -q -n 2 --hypothesis-profile=thorough -m "not long" tests/unit

MINUTES ?= 10
SEED ?= 1
BROKERS ?= 1
chaos: setup  ## inject random faults under load for MINUTES, with SEED and 1 or 3 BROKERS, and count what is missing or doubled
	$(BIN)/python tests/faults/chaos.py --minutes $(MINUTES) --seed $(SEED) --brokers $(BROKERS)

BENCH := @mkdir -p .local && $(BIN)/python -m bench --json .local/bench.json --markdown .local/bench.md --plot .local/bench.png
bench: setup  ## measure this machine, beside peers on the same servers: about five minutes
	$(BENCH)

bench-quick: setup  ## measure the main cases: a minute
	$(BENCH) --quick

ROWS ?= 10000000
bench-growth: setup  ## measure by workers, writers, partitions, and ROWS that are in the table already: long
	$(BENCH) growth table --rows 1000000 --rows $(ROWS)

PAGE ?= http://127.0.0.1:8090
pictures: setup  ## take docs/images from a running make run, with this machine's chromium
	$(BIN)/python -m deploy.local.pictures $(PAGE)

lock: setup  ## pin every dependency anew, with hashes and no addresses
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate --extra tracing -o $(LOCK)/runtime.txt pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate --extra dev --extra tracing -c $(LOCK)/runtime.txt -o $(LOCK)/development.txt pyproject.toml

clean:  ## remove the virtual environment and the local state
	rm -rf .venv .local
