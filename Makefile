# make demo   export a small real model, ask it about a picture
# make test   lint, types, tests
# Both need only python3 (3.11 or later), python3-venv, make and a C compiler; they make .venv and change nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.SILENT:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
WORKERS ?= 2
IMAGE ?=
QUESTION ?= What is this?

VENV := .venv
VENV_REFERENCE := .venv-reference
BUILD := build
DEMO := $(BUILD)/demo
EXPORTED := $(DEMO)/exported

# Everything that changes an exported package; the demo's package is made again when one of these is newer.
EXPORT_INPUTS := $(shell find edgevlm export -name '*.py') $(wildcard assets/demo/fetch.py assets/demo/*.json assets/demo/*.safetensors)

# The native library stands beside the module that loads it.
NATIVE := edgevlm/backends/libedgevlm-$(shell uname -m | sed 's/aarch64/arm64/').so
NATIVE_INPUTS := $(shell find tvm_schedules -name '*.py' -o -name '*.json') $(wildcard edgevlm/engine/*.c edgevlm/engine/*.h)

# The engine and its JNI part for phones, and the app with them.
ANDROID := $(BUILD)/android
ANDROID_LIBRARIES := $(ANDROID)/libedgevlm.so $(ANDROID)/libedgevlm_jni.so
ANDROID_PACKAGE ?=
ANDROID_FLAGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.PHONY: help check demo native apk android-library test test-slow test-emulated test-android lint test-reference deps golden parity docs clean

help: ## print this list
	grep -E '^[a-z-]+:.*## ' Makefile | while IFS= read -r line; do printf '  make %-16s %s\n' "$${line%%:*}" "$${line##*## }"; done

check:
	packages=''
	if ! command -v "$(PYTHON)" >/dev/null; then
	  packages='python3 python3-venv'
	elif ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
	  echo "edgevlm needs Python 3.11 or later; $(PYTHON) is $$("$(PYTHON)" -V 2>&1). Name another one: make PYTHON=python3.12" >&2
	  exit 1
	elif ! "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null; then
	  packages='python3-venv'
	fi
	if ! command -v cc >/dev/null && ! command -v gcc >/dev/null && ! command -v clang >/dev/null; then
	  packages="$$packages gcc libc6-dev"
	fi
	if [ -n "$$packages" ]; then
	  echo "Missing on this machine. Type this, then make again:" >&2
	  echo "  sudo apt-get install -y $$packages" >&2
	  exit 1
	fi

# Downloads are tried twice; what pip says is shown only when both fail.
define install
	if [ ! -x $(1)/bin/python ]; then rm -rf $(1); "$(PYTHON)" -m venv $(1); fi
	log=$$(mktemp); trap 'rm -f "$$log"' EXIT
	attempt() {
	  $(1)/bin/python -m pip install -qq $(PIP_FLAGS) -r requirements/$(2).txt &&
	  $(1)/bin/python -m pip install -qq --no-deps --no-build-isolation -e .
	}
	echo "Installing requirements/$(2).txt into $(1) ..."
	if ! attempt >"$$log" 2>&1 && ! { sleep 3; attempt >"$$log" 2>&1; }; then
	  cat "$$log" >&2
	  if grep -qiE 'connection|resolution|resolve host|timed out|timeout|unreachable|Max retries|ProxyError|SSLError' "$$log"; then
	    echo "No package could be downloaded. Check the network (or pip's index and proxy settings), then run make again." >&2
	  else
	    echo "pip could not install requirements/$(2).txt; its own words are above." >&2
	  fi
	  exit 1
	fi
	touch $@
endef

$(VENV)/.export: requirements/base.txt requirements/export.txt pyproject.toml | check
	$(call install,$(VENV),export)

$(VENV)/.dev: requirements/dev.txt $(VENV)/.export | check
	$(call install,$(VENV),dev)

$(VENV)/.tvm: requirements/tvm.txt $(VENV)/.dev | check
	$(call install,$(VENV),tvm)

$(VENV)/.qnn: requirements/qnn.txt $(VENV)/.tvm | check
	$(call install,$(VENV),qnn)

$(NATIVE): $(NATIVE_INPUTS) $(VENV)/.tvm
	echo "Building the native library (about a minute) ..."
	$(VENV)/bin/python -m tvm_schedules.build -o $(dir $(NATIVE)) >/dev/null

$(VENV)/.android: requirements/android.txt $(VENV)/.dev $(VENV)/.tvm | check
	$(call install,$(VENV),android)

$(ANDROID)/libedgevlm.so: $(NATIVE_INPUTS) $(VENV)/.tvm
	echo "Building the engine for phones (some minutes the first time) ..."
	$(VENV)/bin/python -m tvm_schedules.build --arch arm64 --os android -o $(ANDROID) >/dev/null

$(ANDROID)/libedgevlm_jni.so: $(ANDROID)/libedgevlm.so $(wildcard android_demo/library/src/main/c/*) android_demo/apk/library.py
	$(VENV)/bin/python -m android_demo.apk.library --engine $< -o $(ANDROID) >/dev/null

$(VENV_REFERENCE)/.reference: $(wildcard requirements/*.txt) pyproject.toml | check
	$(call install,$(VENV_REFERENCE),reference)

$(EXPORTED): $(VENV)/.export $(EXPORT_INPUTS)
	mkdir -p $(DEMO)
	echo "Fetching the demo's weights (190 MB the first time) ..."
	checkpoint=$$($(VENV)/bin/python assets/demo/fetch.py)
	echo "Making a package of $$checkpoint and checking its numbers (about a minute on two idle cores) ..."
	$(VENV)/bin/edgevlm export "$$checkpoint" -o $(DEMO)/package --force >$@.tmp
	mv $@.tmp $@

demo: $(EXPORTED) ## export a small real model and ask it about a picture
	package=$$(cat $(EXPORTED))
	ask() {
	  echo
	  echo "picture:  $$1"
	  echo "question: $$2"
	  printf 'answer:   '
	  $(VENV)/bin/edgevlm run "$$package" "$$2" --image "$$1" --timings
	}
	if [ -n "$(IMAGE)" ]; then
	  ask "$(IMAGE)" "$(QUESTION)"
	else
	  ask assets/blue-rectangle.png 'What color is the shape?'
	  ask assets/three-shapes.png 'What color is the star?'
	  ask assets/phone-screen.png 'Which number is shown?'
	fi
	echo
	echo "package:  $$package ($$(du -shL "$$package" | cut -f1))"
	echo
	echo "Ask something else:  $(VENV)/bin/edgevlm run $$package 'Is there a circle?' --image assets/three-shapes.png"
	echo "Talk with it:        $(VENV)/bin/edgevlm chat $$package"
	echo "Look inside:         $(VENV)/bin/edgevlm inspect $$package"

lint: $(VENV)/.dev ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

native: $(NATIVE) ## build the native library for this machine

android-library: $(ANDROID_LIBRARIES) ## build the engine for phones

apk: $(VENV)/.android $(ANDROID_LIBRARIES) ## build, sign and check the Android app; ANDROID_PACKAGE=DIR bundles a package
	$(VENV)/bin/python -m android_demo.apk.make $(addprefix --library ,$(ANDROID_LIBRARIES)) \
	  $(if $(ANDROID_PACKAGE),--package "$(ANDROID_PACKAGE)") $(ANDROID_FLAGS) -o $(BUILD)/apk

test: $(VENV)/.dev $(NATIVE) ## lint, types, tests; the other test targets have what needs weights, an emulator or Android
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m 'not android and not emulated and not slow and not weights' $(PYTEST_FLAGS)

test-slow: $(VENV)/.qnn $(NATIVE) $(VENV_REFERENCE)/.reference ## tests that take minutes, with real weights; long comparisons
	EDGEVLM_TEST_WEIGHTS=1 $(VENV)/bin/python -m pytest -m 'slow and not reference' $(PYTEST_FLAGS)
	$(VENV_REFERENCE)/bin/python -m pytest -m 'slow and reference' $(PYTEST_FLAGS)

test-emulated: $(VENV)/.qnn $(NATIVE) ## arm64, Hexagon and older x86-64 under qemu, the NPU's emulator; needs the tools of `make deps`
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m 'emulated and not slow' $(PYTEST_FLAGS)

test-android: $(VENV)/.dev $(NATIVE) ## the Android library and the app's logic on the desktop JVM, the APK's parts
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m 'android and not slow' --dist loadfile tests/android_demo $(PYTEST_FLAGS)

test-reference: $(VENV_REFERENCE)/.reference ## the comparisons live against transformers and torch, and with real weights
	EDGEVLM_TEST_WEIGHTS=1 $(VENV_REFERENCE)/bin/python -m pytest -n $(WORKERS) -m '(weights or (reference and not slow)) and not android and not emulated' $(PYTEST_FLAGS)

DEBIAN_TOOLS := clang-19 lld-19 llvm-19 qemu-user gcc-aarch64-linux-gnu g++-aarch64-linux-gnu \
  openjdk-17-jdk-headless aapt apksigner zipalign android-framework-res dexdump android-libnativehelper-dev adb strace util-linux
deps: ## install the optional Debian tools (tests that need them skip without)
	command -v apt-get >/dev/null || { echo "make deps knows Debian's apt-get only; install by hand: $(DEBIAN_TOOLS)" >&2; exit 1; }
	root=''; [ "$$(id -u)" = 0 ] || root=sudo
	echo "Installing $(DEBIAN_TOOLS) ..."
	log=$$(mktemp); trap 'rm -f "$$log"' EXIT
	attempt() {
	  $$root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$root apt-get install -qq -y --no-install-recommends $(DEBIAN_TOOLS)
	}
	if ! attempt >"$$log" 2>&1 && ! { sleep 3; attempt >"$$log" 2>&1; }; then
	  tail -n 30 "$$log" >&2
	  echo "apt-get failed twice; its own words are above." >&2
	  exit 1
	fi

golden: $(VENV_REFERENCE)/.reference ## make the golden files again from transformers
	for script in tests/golden/make_*.py; do
	  echo "$$script"
	  EDGEVLM_TEST_WEIGHTS=1 $(VENV_REFERENCE)/bin/python -m "tests.golden.$$(basename "$$script" .py)"
	done

parity: $(VENV_REFERENCE)/.reference ## write README's parity table
	EDGEVLM_TEST_WEIGHTS=1 $(VENV_REFERENCE)/bin/python -m tests.parity_table --write

docs: $(VENV)/.dev ## write the generated pages of docs/
	$(VENV)/bin/python -m edgevlm.cli.docs --write docs/cli.md
	$(VENV)/bin/python docs/make_package_format.py --write
	$(VENV)/bin/python -m docs.make_npu_tables --write
	$(VENV)/bin/python -m tests.broken.make_docs --write

clean: ## remove the virtual environments and everything built
	rm -rf $(VENV) $(VENV_REFERENCE) $(BUILD) edgevlm/backends/libedgevlm-*.so dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
