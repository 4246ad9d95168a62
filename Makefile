# The tasks of this project by name. Needs Python 3.11 or 3.12 with pip, and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow ui lint clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready ## install everything into .venv

.venv/.ready: pyproject.toml constraints.txt setup.sh
	@PYTHON="$(PYTHON)" sh setup.sh

demo: setup ## train a small model, from web pages to assistant, and print its family tree
	@$(BIN)/stemma demo

test: setup ## check style and types, run the tests: what CI runs
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python -m pytest

test-slow: setup ## run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

ui: setup ## start the Dagster UI with its schedules, and the MLflow UI, on 127.0.0.1
	@$(BIN)/stemma up

lint: setup ## format, and fix what the linter can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean: ## remove work folders and caches, keep every version
	@rm -rf work .pytest_cache .ruff_cache .mypy_cache
