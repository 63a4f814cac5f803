# Every target sets up what it needs. Bare `make` prints this list.
.DEFAULT_GOAL := help
.PHONY: help setup demo test stress check ci lab serve docs bench export lock

port ?= 3000
bin := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:  ## this list
	@echo "mlsys: notebooks that become whole machine-learning systems"; echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: .venv/ready  ## .venv with the packages of requirements.lock (uv when present, else pip)
	@:

.venv/ready: requirements.lock settings.ini setup.py
	@.ci/setup

demo: setup  ## the whole loop on simulated card payments, in under two minutes
	$(bin)/mlsys demo

test: setup  ## notebooks clean and in sync, every notebook tested, then pytest
	$(bin)/python tests/house.py
	$(bin)/python -m mlsys.site readme --check
	$(bin)/python tests/notebooks.py
	$(bin)/pytest -n 2 --dist loadfile -m 'not stress'

stress: setup  ## the tests that take long: whole trainings again and again, kills, rebuilds (CI runs them, too)
	$(bin)/pytest -n 2 --dist loadfile -m stress

check: setup  ## type check and lint
	$(bin)/mypy
	$(bin)/ruff check

ci: setup  ## everything that CI runs
	.ci/run

lab: setup  ## JupyterLab on this checkout
	$(bin)/mlsys lab

serve: setup  ## the HTTP service of the reference project (port=3000)
	$(bin)/mlsys serve --port $(port)

docs: setup  ## the docs site, from the executed notebooks, in _docs
	$(bin)/mlsys docs

bench: setup  ## side by side against peers
	$(bin)/python -m benchmarks

export: setup  ## notebooks to package, cleaned; README from the front page
	$(bin)/mlsys export
	$(bin)/python -m mlsys.site readme

lock: setup  ## pin what settings.ini asks for in requirements.lock
	.ci/lock
