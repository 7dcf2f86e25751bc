# Needs nothing but Python 3.10 or newer, git and make. Every target installs what it uses into .venv, once, and again
# when setup.cfg or constraints.txt change. pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_CONSTRAINT, ...)
# are passed on, so a mirror or an index with a CPU-only torch works: PIP_EXTRA_INDEX_URL=... make demo
#
#   make demo   [IMAGE=photo.png] [PROMPT="make the star blue"]   segment and edit an image with focus-tiny
#   make test   [ARGS="-k mask -x"]                               the tests (ARGS="-m slow" for the slow ones)
#   make fast   [ARGS="-k mask -x"]                               those of them that run no whole program, page or training
#   make test-extras                                              the tests that need torchvision, in an environment of their own
#   make check                                                    lint, format, types, import direction
#   make format                                                   let ruff repair what it can
#   make tiny   [ARGS="..."]                                      train focus-tiny from nothing
#   make bench  [ARGS="..."]                                      measure time and memory of focus-tiny and of diffusers' switches
#   make clean                                                    remove .venv and caches
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=

.PHONY: help demo test fast test-extras check format tiny bench clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

# The words of IMAGE and PROMPT reach the program through the shell's environment, whatever quotes they hold.
demo: override export IMAGE := $(value IMAGE)
demo: override export PROMPT := $(value PROMPT)
demo: $(VENV)/.installed-base
	@$(VENV)/bin/diffusers-focus demo $${IMAGE:+--image "$$IMAGE"} $${PROMPT:+--prompt "$$PROMPT"} $(ARGS)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

fast: override ARGS += -m "not whole and not slow and not gpu"
fast: test

test-extras: $(VENV)-extras/.installed
	OMP_NUM_THREADS=1 $(VENV)-extras/bin/python -m pytest tests/pipelines/test_guides.py tests/evaluation/test_lpips.py -rs $(ARGS)

check: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

tiny: $(VENV)/.installed-train
	$(RUN) recipes/focus_tiny.py $(ARGS)

bench: $(VENV)/.installed-train
	$(RUN) benchmarks/bench_focus_tiny.py $(ARGS)
	$(RUN) benchmarks/bench_switches.py

# controlnet-aux and lpips need torchvision, which goes with one torch alone.
$(VENV)-extras/.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)-extras
	grep -v '^torch==' constraints.txt > $(VENV)-extras/constraints.txt
	$(VENV)-extras/bin/python -m pip install --quiet --constraint $(VENV)-extras/constraints.txt torch==2.14.1 torchvision==0.29.1 --editable '.[dev,controlnet,lpips]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-extras .pytest_cache .ruff_cache .import_linter_cache build dist src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("error: Python 3.10 or newer is needed, $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-base: setup.cfg constraints.txt | $(VENV)/.created
	@echo "Installing into $(VENV) (torch is the large part, a few minutes the first time)"
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-%: setup.cfg constraints.txt | $(VENV)/.created
	@echo "Installing into $(VENV) (torch is the large part, a few minutes the first time)"
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@
