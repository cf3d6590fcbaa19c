# make demo      base, supervised LoRA and DRO + SelfAug on an invented world, with a report (under 6 minutes on 2 cores)
# make check     linters, types and the unit tests, after each change (under a minute on 2 cores)
# make test      the whole test suite, before each merge (under 10 minutes on 2 cores)
# make lint      linters and types alone
# make durations measure every test again, which says what `make check` leaves out as slow
# make install   the environment that all of them use
#
# Nothing but make and Python 3.11 or newer has to be there; choose another one by `make PYTHON=python3.12 test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := indexes generator retriever training rag
# A package index to look at for torch first, say the one with its CPU builds (much smaller than the CUDA ones).
TORCH_INDEX ?=
# Processes that tests are shared out to: "logical" is one for each core.
WORKERS ?= logical

# Idle OpenMP threads that spin make torch and faiss many times slower on busy cores.
export OMP_WAIT_POLICY := PASSIVE
# Without bytecode every process that tests start would compile the packages again.
unexport PYTHONDONTWRITEBYTECODE

PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt
# One thread for each worker: they share the cores already. A worker that is done takes over tests of another one.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
    $(BIN)/pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal -o console_output_style=count
UNIT_TESTS := not (process or training or browser or milvus or slow)

# Says $(1) and runs $(2), an installation by pip: its output goes to a file that is shown only when it fails. A terminal
# sees how many packages have been found and for how long it has been at work, a log file a dot for every two seconds.
define quietly
	@mkdir -p $(VENV); log=$(VENV)/install.log; printf '%s ' "$(1)"; start=$$(date +%s); ($(2)) >$$log 2>&1 & job=$$!; \
	while kill -0 $$job 2>/dev/null; do \
	    sleep 2; \
	    if [ -t 1 ]; then printf '\r%s: %s packages, %s s ' "$(1)" $$(grep -c '^Collecting' $$log) $$(($$(date +%s) - start)); \
	    else printf .; fi; \
	done; \
	if wait $$job; then echo ' done'; else echo ' failed:'; tail -n 30 $$log; exit 1; fi
endef

.DEFAULT_GOAL := help
.PHONY: help install install-demo check test durations demo lint clean

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(VENV)/.installed-dev
install-demo: $(VENV)/.installed

# The stamps are newer than what they were made from; a changed version range installs again.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(call quietly,Installing the package and the 50 others that it needs into $(VENV) (1 to 2 minutes),$(PIP_INSTALL) -e .)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(call quietly,Installing the package and the 120 others that it and its tests need into $(VENV) (1 to 3 minutes),$(PIP_INSTALL) -e ".[dev]")
	@touch $(VENV)/.installed $@

# torch first and alone, so that no other package resolves a different build of it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else \
	    f"Python 3.11 or newer is needed, $(PYTHON) is {v}. Name another: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call quietly,Installing torch into $(VENV) (1 to 3 minutes),$(PIP_INSTALL) $(addprefix --extra-index-url ,$(TORCH_INDEX)) torch)
	@touch $@

# The type checker runs beside the tests; what it says stands in front of their closing lines.
check: install
	@echo "Checking style, types and the unit tests (under a minute on 2 cores)."
	@$(BIN)/ruff check -q . && $(BIN)/ruff format --check -q .
	@$(BIN)/mypy >$(VENV)/mypy.log 2>&1 & types=$$!; \
	$(PYTEST) -m "$(UNIT_TESTS)"; tests=$$?; \
	wait $$types || { cat $(VENV)/mypy.log; exit 1; }; exit $$tests

test: install
	@echo "Running the whole test suite (under 10 minutes on 2 cores); the count at the end of a line says how far it is."
	@$(PYTEST)

durations: install
	@echo "Measuring every test (under 15 minutes on 2 cores) into tests/durations.json."
	@rm -f tests/durations.json
	@$(PYTEST) --write-durations

demo: install-demo
	@echo "Training and comparing three models on an invented world (3 to 5 minutes on 2 cores)."
	@$(BIN)/rag demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
