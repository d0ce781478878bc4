# The commands of the book. On a bare machine with Python 3.11 or newer the
# first one makes an environment in .venv; Node comes as a Python package.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := $(BIN)/python
# a benchmark that writes what a chapter shows is a record, the others compare
RECORDS = $(shell grep -l chapters benchmarks/*.py)
BENCHMARKS = $(filter-out $(RECORDS),$(wildcard benchmarks/*.py))
CHAPTERS = $(wildcard chapters/*.ipynb *.ipynb)

.PHONY: help book test lint lab notebooks site site-test screenshot print \
	measure rust golden mutants mutants-golden bench records canary clean
.DEFAULT_GOAL := help

help:  ## list these commands
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

# torch first and alone, so that a build of it that is there already is kept
$(READY): requirements.txt constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, found $$($(PYTHON) -V)."; \
	    echo "Name another one: make PYTHON=python3.12"; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -c constraints.txt \
	  "$$(grep '^torch==' requirements.txt)"
	$(RUN) -m pip install -q -r requirements.txt
	$(RUN) -m pip install -q --no-deps --no-build-isolation -e .
	@# JupyterLab would ask whether it may fetch news from another host
	$(BIN)/jupyter labextension disable --level=sys_prefix \
	  @jupyterlab/apputils-extension:announcements 2>/dev/null
	@touch $@

book: $(READY)  ## build the site from the stored outputs
	@$(RUN) -m book.build
	@echo "Open file://$(CURDIR)/_build/html/index.html in a browser."

test: $(READY)  ## everything that is checked; see the summary at its end
	@$(RUN) -m book.check

lint: $(READY)  ## style and types
	@$(RUN) -m book.check lint types

lab: $(READY)  ## open the chapters in JupyterLab
	$(if $(CHAPTERS),$(BIN)/jupyter trust $(CHAPTERS))
	$(BIN)/jupyter lab --ServerApp.root_dir=. \
	  --LabApp.default_url=/lab/tree/chapters

notebooks: $(READY)  ## run all chapters in place; a second run changes nothing
	$(RUN) -m book.run_notebooks $(CHAPTERS)

site: $(READY)  ## build the site from nothing; every warning is an error
	@$(RUN) -m book.build --strict

site-test: site  ## the built site in a browser
	@$(RUN) -m book.check site-tests

print: site  ## the book on one page and as a PDF, in _build/print
	@$(RUN) -m book.paper

measure: site  ## weight, first paint and accessibility of every page
	@$(RUN) -m book.measure

screenshot: site  ## the picture of the README
	$(RUN) -m book.screenshot

rust:  ## build and test the Rust twins; `cargo` is all they need
	cd rust && cargo test --offline --locked

canary: $(READY)  ## parity with the newest transformers; only reports
	@$(RUN) -m book.canary

golden: $(READY)  ## write the vectors that Python and Rust must both reproduce
	$(RUN) -m tests.golden.write

mutants: $(READY)  ## plant the catalogue of mistakes; each must be caught
	$(RUN) -m tests.mutations

mutants-golden: $(READY)  ## the same, but only golden vectors may catch them
	$(RUN) -m tests.mutations --golden

records: $(READY)  ## renew the runs that chapters show as recorded; an hour
	@for name in $(basename $(notdir $(RECORDS))); do \
	  echo "== $$name"; OMP_NUM_THREADS=1 $(RUN) -m benchmarks.$$name || exit 1; \
	done

bench: $(READY)  ## speed side by side with peers
	@for name in $(basename $(notdir $(BENCHMARKS))); do \
	  echo "== $$name"; $(RUN) -m benchmarks.$$name || exit 1; done

clean:  ## remove what the commands made, except the environment
	rm -rf _build build *.egg-info .pytest_cache .mypy_cache .ruff_cache
