# make help lists what there is. Nothing here needs more than Python 3.11, pip and make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
SEED ?= 0
EMOJI_PACKAGES := fonts-noto-color-emoji unicode-data unicode-cldr-core libraqm0 libfribidi0
EMOJI_DATA := examples/emoji/data

# small models on few cores: more threads for each operation only get in each other's way
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

TEST_PACKAGES := chromium chromium-driver $(EMOJI_PACKAGES)

# install those Debian packages of a list that are missing
define APT
	@missing=$$(for name in $(1); do dpkg-query -W -f '$${Status}' $$name 2>/dev/null | grep -q 'ok installed' || echo $$name; done); \
	if [ -n "$$missing" ]; then \
	  echo "$@: installing" $$missing; \
	  if [ "$$(id -u)" -eq 0 ]; then as_root=; else as_root=sudo; fi; \
	  $$as_root apt-get update -qq; DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	fi
endef

.PHONY: help setup demo test quick torture packages lint words site wheel emoji clean

help:  ## list these targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## make .venv and install cwdpo in it, with the pinned development tools

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setup: making $(VENV) with $(PYTHON) and installing the versions in constraints.txt (some minutes, once)"
	@test -n "$(PYTHON)" || { echo "setup: no python3.11 or python3 found; install it, or give PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "setup: the pinned versions need Python 3.11 or newer; give PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
	@echo "setup: done; $(BIN)/cwdpo --help"

demo: setup  ## train a tiny vision-language model through both stages; no downloads. OUT=DIR SEED=N
	$(BIN)/cwdpo demo --out "$(OUT)" --seed $(SEED)

test: lint  ## every check: lint, types, layers, doctests and tests
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n 2

quick: setup  ## nine tests in ten, within three minutes: those without a mark
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n 2 -m "not slow and not browser and not ranks and not bench"

torture: setup  ## kills, full disks, second starts and random input, in many tries: an hour or so. SEED=N
	cd tests && PYTHONPATH=.:.. $(TEST_ENVIRONMENT) ../$(BIN)/python -W ignore -m torture --seed $(SEED)

packages:  ## Debian packages for the tests that look at pages in a browser and at real emoji; without them these are skipped
	$(call APT,$(TEST_PACKAGES))

lint: setup  ## ruff, mypy, the import layers, the Dockerfile and the word list
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/codespell

wheel: setup  ## build the wheel, and run its demo from an environment and a folder of its own
	.ci/check_wheel

emoji: setup  ## real images: build the emoji data set from Debian's packages (asks apt for those that are missing)
	$(call APT,$(EMOJI_PACKAGES))
	$(BIN)/python examples/emoji/build.py --out $(EMOJI_DATA)

words: setup  ## spelling, and the words that docs/words.txt replaces
	$(BIN)/codespell

site: setup  ## build the documentation's site into site/, every warning an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove .venv and caches, never runs or data
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
