# The two commands: `make demo` and `make test`. Both set up .venv first and reuse it afterwards.
PYTHON ?= python3.11
RECIPE ?= int4-gptq
BIN := .venv/bin
export EDGE_CACHE ?= $(CURDIR)/.cache

.PHONY: demo test device-test lint baselines melt bench-kernels checked-kernels sanitize fuzz clean

demo: .venv/ready
	$(BIN)/edge demo $(if $(MODEL),--model $(MODEL)) --recipe $(RECIPE) --output out/demo

test: .venv/ready-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(TESTS)

# Phones and a Jetson that this machine stands in for (root, Linux 6.7): real adb and ssh, real faults.
# The Android build of ONNX Runtime (143 MB) is fetched once; where it can't be had, its test is skipped and says so.
device-test: .venv/ready-dev
	$(BIN)/python -c 'from edge.runtimes._onnxruntime_library import library_for; library_for("android-arm64")' || true
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest device_tests

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp')

# Slow: the figures in profiles/baselines, measured on this machine.
baselines: .venv/ready
	$(BIN)/python -m edge.profiles.peers.smollm2 --output profiles/baselines

# Engines beside each other by the profiling protocol, and how far a bundle is from itself: half an hour, nothing else.
melt: .venv/ready-dev .venv/ready-bench
	$(BIN)/python -m edge.profiles.peers.melt --output profiles/baselines
	$(BIN)/python -m edge.profiles.peers.aa out/melt/bundles/int4-onnx --output profiles/baselines

# The kernels beside other libraries, on this machine: some ten minutes, and nothing else should run meanwhile.
bench-kernels: .venv/ready-bench
	mkdir -p out
	$(BIN)/edge bench kernels --output out/bench-kernels.json

# The kernels with ASan and UBSan, which end the process at their first finding, and what the fuzzer counts. No -g: it
# doubles the time, as everything is inlined.
SANITIZERS := address,undefined,float-cast-overflow
CHECKED := -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all
CHECKED_LIBRARY := $(CURDIR)/build/checked/libedge_kernels.so
WITH_CHECKS = EDGE_KERNELS_LIBRARY=$(CHECKED_LIBRARY) ASAN_OPTIONS=detect_leaks=0 \
  LD_PRELOAD=$$(clang -print-file-name=libclang_rt.asan-$$(uname -m).so)
FUZZ_SECONDS ?= 600

checked-kernels: .venv/ready-dev
	CC=clang CXX=clang++ $(BIN)/cmake -S kernels -B build/checked -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DCMAKE_BUILD_TYPE=None -DCMAKE_C_STANDARD_LIBRARIES=-Wl,-z,undefs \
	  -DCMAKE_C_FLAGS="$(CHECKED) -fsanitize=fuzzer-no-link,$(SANITIZERS)" \
	  -DCMAKE_CXX_FLAGS="$(CHECKED) -fsanitize=fuzzer-no-link,$(SANITIZERS)"
	$(BIN)/cmake --build build/checked --target edge_kernels

# Reports are for the terminal: only what Python prints is captured. test_cross builds libraries of its own.
sanitize: checked-kernels
	$(WITH_CHECKS) $(BIN)/python -m pytest --capture=sys --ignore=kernels/tests/test_cross.py kernels/tests

fuzz: checked-kernels .venv/ready-fuzz
	clang++ -std=c++17 $(CHECKED) -fsanitize=fuzzer,$(SANITIZERS) -Ikernels/include kernels/fuzz/fuzz_packed.cpp \
	  $(CHECKED_LIBRARY) -Wl,-rpath,$(dir $(CHECKED_LIBRARY)) -o build/checked/fuzz_packed
	$(BIN)/python kernels/fuzz/corpus.py build/checked/seeds
	mkdir -p build/checked/corpus build/checked/python-corpus
	build/checked/fuzz_packed -max_total_time=$(FUZZ_SECONDS) -timeout=60 -artifact_prefix=build/checked/ \
	  build/checked/corpus build/checked/seeds
	$(BIN)/python kernels/fuzz/fuzz_unpack.py -max_total_time=$(FUZZ_SECONDS) -timeout=60 \
	  -artifact_prefix=build/checked/ build/checked/python-corpus build/checked/seeds

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A change of the kernels or of the dependencies installs again.
.venv/ready: .venv/bin/python pyproject.toml $(shell git ls-files kernels 2>/dev/null | grep -E '\.(cpp|h|inc|c|txt)$$')
	$(BIN)/python -m pip install --editable .
	touch $@

# An extra's own packages: installing `.[dev]` would compile the kernels a second time.
EXTRAS := import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")
extra = $(BIN)/python -c '$(EXTRAS)' $(1) > build/$(1).txt && $(BIN)/python -m pip install -r build/$(1).txt

.venv/ready-dev: .venv/ready
	mkdir -p build
	$(call extra,dev)
	touch $@

# llama.cpp is built from source, for this machine: ten minutes more.
.venv/ready-bench: .venv/ready
	mkdir -p build
	export CMAKE_ARGS="-DGGML_NATIVE=ON"; $(call extra,bench)
	touch $@

.venv/ready-fuzz: .venv/ready-dev
	$(call extra,fuzz)
	touch $@

clean:
	rm -rf .venv build out
