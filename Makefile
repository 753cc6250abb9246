# The two commands: `make demo` and `make test`. Both set up .venv first and reuse it afterwards.
PYTHON ?= python3.11
RECIPE ?= int4-gptq
BIN := .venv/bin
export EDGE_CACHE ?= $(CURDIR)/.cache

.PHONY: demo test lint baselines bench-kernels clean

demo: .venv/ready
	$(BIN)/edge demo $(if $(MODEL),--model $(MODEL)) --recipe $(RECIPE) --output out/demo

test: .venv/ready-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp')

# Slow: the figures in profiles/baselines, measured on this machine.
baselines: .venv/ready
	$(BIN)/python -m edge.profiles.peers.smollm2 --output profiles/baselines

# The kernels beside other libraries, on this machine: some ten minutes, and nothing else should run meanwhile.
bench-kernels: .venv/ready-bench
	mkdir -p out
	$(BIN)/edge bench kernels --output out/bench-kernels.json

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A change of the kernels or of the dependencies installs again.
.venv/ready: .venv/bin/python pyproject.toml $(shell git ls-files kernels 2>/dev/null | grep -E '\.(cpp|h|inc|c|txt)$$')
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

# llama.cpp is built from source, for this machine: ten minutes more.
.venv/ready-bench: .venv/ready
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(BIN)/python -m pip install --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv build out
