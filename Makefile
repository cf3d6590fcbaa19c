# make demo     base, supervised LoRA and DRO + SelfAug on an invented world, with a report (minutes on two cores)
# make test     the whole test suite
# make install  only the environment that both of them use
#
# Nothing but make and Python 3.11 or newer has to be there; choose another one by `make PYTHON=python3.12 test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := indexes generator retriever training rag
# A package index to look at for torch first, say the one with its CPU builds (much smaller than the CUDA ones).
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# Idle OpenMP threads that spin make torch and faiss many times slower on busy cores.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install install-demo test demo lint clean

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(VENV)/.installed-dev
install-demo: $(VENV)/.installed

# The stamps are newer than what they were made from; a changed version range installs again.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP_INSTALL) -e ".[dev]"
	@touch $(VENV)/.installed $@

# torch first and alone, so that no other package resolves a different build of it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else \
	    f"Python 3.11 or newer is needed, $(PYTHON) is {v}. Name another: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(addprefix --extra-index-url ,$(TORCH_INDEX)) torch
	@touch $@

test: install
	$(BIN)/pytest

demo: install-demo
	$(BIN)/rag demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
