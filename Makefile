# Every target sets up what it needs; a second run finds it done.
# Needs only Python 3.11+, git, make and a package registry.
PYTHON ?= python3
BIN := .venv/bin
# How many tests run at a time. Many wait for containers, so that two at a time take half as long even on one core.
AT_ONCE ?= 2

.PHONY: demo test check lint types contracts unit bench lock engines clean

demo: .venv/ready  ## The main job: one message answered by an agent in a sandbox, with evidence
	$(BIN)/crab demo

test: .venv/ready  ## All tests that this machine can run; skipped engines are listed with their reason
	$(BIN)/pytest --numprocesses $(AT_ONCE) --dist worksteal

check: lint types contracts test  ## What CI runs

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

contracts: .venv/ready
	$(BIN)/lint-imports

bench: .venv/ready
	$(BIN)/crab bench roundtrip --json
	$(BIN)/crab bench wake --json
	$(BIN)/crab bench idle --json

lock:  ## Resolve the newest versions into requirements.lock (no registry address is kept in it)
	$(BIN)/uv pip compile -q --all-extras --group dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-emit-package hermitcrab-runner --upgrade -o requirements.lock pyproject.toml

.venv/ready: requirements.lock pyproject.toml packages/runner/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Hermitcrab needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@echo "==> Making the virtual environment .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "==> Installing the locked dependencies"
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'uv==0.13.9'
	@$(BIN)/uv pip install -q --compile-bytecode --require-hashes -r requirements.lock --python $(BIN)/python
	@$(BIN)/uv pip install -q --no-deps -e packages/runner -e . --python $(BIN)/python
	@# Here once, and not at each start: some environments let no Python keep what it compiles.
	@$(BIN)/python -m compileall -q -j 0 src packages/runner/src bench
	@touch $@
