# make demo | test | test-oldest | lint | bench | update-lock | clean. Set-up is inside: the first of them makes .venv and
# installs into it, later ones find it done. Another Python, beside it: make test PYTHON=python3.12 VENV=.venv-3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Written last, so an interrupted installation is taken up again; older than pyproject.toml or a lock: redone.
STAMP  := $(VENV)/.installed
EXTRAS := train,export,cpu,test
LOCKS  := $(wildcard requirements/*.txt)
# Which lock to install from; left out, the one of the environment's Python.
LOCK   ?=
OLDEST := .venv-oldest
OLDEST_LOCK := requirements/oldest.txt
# The Pythons that isodet is tested with (pyproject.toml says the same); each has its lock.
PYTHONS := 3.10 3.11 3.12 3.13
# What test-oldest runs: training, the networks, the export and its proof, what reads and runs the result.
CORE := tests/test_arc.py tests/test_requirements.py \
    $(patsubst %,tests/models/test_%.py,detectors backbones golden parity_heads checkpoint import custom_refused) \
    $(patsubst %,tests/trainer/test_%.py,loop resume optim augment_transforms mixed_precision qat loggers machine) \
    $(patsubst %,tests/runtime/test_%.py,detector torch_backend image evaluate batcher ort_library openvino) \
    $(patsubst %,tests/export/test_%.py,graph nms_forms int8_graphs)

MINOR := import sys; print("%d.%d" % sys.version_info[:2])
comma := ,

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest lint format bench update-lock core clean python-fits

help:
	@echo "make demo    data, training, ONNX, proof of its mAP, an annotated video: about ten minutes on two free cores"
	@echo "make test    lint, then every test"
	@echo "make test-oldest  the core of the tests with the lowest versions that pyproject.toml allows, in $(OLDEST)"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite what lint would complain about"
	@echo "make bench   training speed against torchvision, latency of the newest run's detector"
	@echo "make update-lock  the newest versions into requirements/, one lock for each Python"
	@echo "make clean   remove .venv, caches and build outputs (runs/ stays)"

demo: $(STAMP)
	@$(BIN)/python benchmarks/demo.py

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=10 -n auto --maxprocesses=8 --dist worksteal

# An environment of its own, and the lowest versions as its lock: `core` runs there.
test-oldest:
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 13) or sys.exit("the lowest versions exist for Python 3.10 to 3.12, and $(PYTHON) is " + sys.version.split()[0] + ": make test-oldest PYTHON=/path/to/python3.11")'
	@$(MAKE) --no-print-directory core VENV=$(OLDEST) LOCK=$(OLDEST_LOCK)

core: $(STAMP) $(CORE)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=10 -n auto --maxprocesses=2 --dist worksteal $(CORE)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)
	@ls runs/*/best.onnx > /dev/null 2>&1 || { echo "make bench times the newest run's detector: 'make demo' first"; exit 1; }
	@$(BIN)/runtime bench
	@$(BIN)/python -m benchmarks.train_vs_torchvision

# uv resolves for Pythons that are not installed, which pip cannot; it goes into an environment that is thrown away.
# A constraint of pip's own configuration holds for the locks as well, since it holds for every installation here.
update-lock:
	@$(PYTHON) -m venv --clear build/uv
	@build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
	@cap=$$(build/uv/bin/python -m pip config list | sed -nE "s/^(global|install|:env:)\.constraint='(.*)'$$/\2/p" | xargs); \
	compile() { \
	    echo "isodet: $$1"; \
	    { echo "# Made by make update-lock; make installs with it."; \
	      UV_CONSTRAINT=$$cap build/uv/bin/uv pip compile --quiet --no-config --no-header --no-annotate \
	          $(addprefix --extra ,$(subst $(comma), ,$(EXTRAS))) "$${@:2}" pyproject.toml; } > build/lock.txt; \
	    mkdir -p requirements; mv build/lock.txt "$$1"; \
	}; \
	for version in $(PYTHONS); do \
	    compile "requirements/lock-py$${version/./}.txt" --python-version "$$version"; \
	done; \
	compile $(OLDEST_LOCK) --resolution lowest-direct --python-version $(firstword $(PYTHONS))
	@rm -rf build/uv

clean:
	@rm -rf $(VENV) .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

# The environment that is there may be of another Python than the one that was asked for: said, not used in silence.
python-fits:
	@command -v $(PYTHON) > /dev/null || \
	    { echo "isodet needs Python 3.10 to 3.13, and '$(PYTHON)' was not found: make PYTHON=/path/to/python3"; exit 1; }
ifneq ($(origin PYTHON),file)
	@asked=$$($(PYTHON) -c '$(MINOR)'); \
	there=$$($(BIN)/python -c '$(MINOR)' 2> /dev/null || echo "$$asked"); \
	[ "$$asked" = "$$there" ] || { \
	    echo "$(VENV) is of Python $$there, and PYTHON=$(PYTHON) is $$asked: add VENV=.venv-$$asked, or 'make clean' first"; \
	    exit 1; }
endif

$(STAMP): pyproject.toml $(LOCKS) | python-fits
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info[:2] <= (3, 13) or sys.exit("isodet needs Python 3.10 to 3.13; $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3")'
	@if ! $(BIN)/python -m pip --version > /dev/null 2>&1; then \
	    echo "isodet: making $(VENV) with $$($(PYTHON) --version)"; \
	    $(PYTHON) -m venv --clear $(VENV) || \
	        { echo "python's venv module is incomplete (on Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }; \
	fi
	@echo "isodet: installing into $(VENV): torch, onnx, opencv and the rest (about 6 GB; some minutes the first time)"
	@version=$$($(BIN)/python -c '$(MINOR)'); lock="$(LOCK)"; lock=$${lock:-requirements/lock-py$${version/./}.txt}; \
	if [ -f "$$lock" ]; then echo "isodet: in the versions of $$lock"; locked=(-c "$$lock"); \
	else echo "isodet: there is no $$lock for Python $$version: in the newest versions, which nobody tested"; locked=(); fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$${locked[@]}" -e ".[$(EXTRAS)]"
	@error=$$($(BIN)/python -c 'import cv2' 2>&1) || { \
	    echo "$$error" | tail -n 1; \
	    echo "opencv-python did not load. Where a system has no libGL, either install it (Debian and Ubuntu:"; \
	    echo "apt-get install libgl1 libglib2.0-0) or swap it for the build that needs none, then call make again:"; \
	    echo "  $(BIN)/pip uninstall -y opencv-python && $(BIN)/pip install opencv-python-headless && touch $(STAMP)"; \
	    exit 1; }
	@touch $@
	@echo "isodet: installed"
