# make demo | test | lint | bench | clean. Set-up is inside: the first of them makes .venv and installs
# into it, later ones find it done. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Written last, so an interrupted installation is taken up again; older than pyproject.toml: redone.
STAMP  := $(VENV)/.installed

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help:
	@echo "make demo    data, training, ONNX, proof of its mAP, an annotated video: about ten minutes on two free cores"
	@echo "make test    lint, then every test"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite what lint would complain about"
	@echo "make bench   training speed against torchvision, latency of the newest run's detector"
	@echo "make clean   remove .venv, caches and build outputs (runs/ stays)"

demo: $(STAMP)
	@$(BIN)/python benchmarks/demo.py

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=10 -n auto --maxprocesses=8 --dist worksteal

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

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@command -v $(PYTHON) > /dev/null || \
	    { echo "isodet needs Python 3.10 or newer, and '$(PYTHON)' was not found: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("isodet needs Python 3.10 or newer; $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3")'
	@if ! $(BIN)/python -m pip --version > /dev/null 2>&1; then \
	    echo "isodet: making $(VENV) with $$($(PYTHON) --version)"; \
	    $(PYTHON) -m venv --clear $(VENV) || \
	        { echo "python's venv module is incomplete (on Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }; \
	fi
	@echo "isodet: installing into $(VENV): torch, onnx, opencv and the rest (about 6 GB; some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[train,export,cpu,test]"
	@error=$$($(BIN)/python -c 'import cv2' 2>&1) || { \
	    echo "$$error" | tail -n 1; \
	    echo "opencv-python did not load. Where a system has no libGL, either install it (Debian and Ubuntu:"; \
	    echo "apt-get install libgl1 libglib2.0-0) or swap it for the build that needs none, then call make again:"; \
	    echo "  $(BIN)/pip uninstall -y opencv-python && $(BIN)/pip install opencv-python-headless && touch $(STAMP)"; \
	    exit 1; }
	@touch $@
	@echo "isodet: installed"
