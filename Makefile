# Every target does its own set-up: all that is installed goes into .venv, nothing elsewhere.
PYTHON ?= python3
BIN := .venv/bin
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo test test-all check fuzz crash attack lowest docs export clean readme refresh bench gpu

help:
	@sed -n 's/^## //p' Makefile

## make demo      fine-tune the embedded CLIP, average the weights, draw the result in wiseft-demo/
demo: .venv/.library
	$(BIN)/wiseft demo -o wiseft-demo --force

TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -ra --durations=10 tests

## make test      10 minutes: modules, command line, README, wheel, a kill, two processes, pages whose inputs changed
test: .venv/.tools
	$(TEST) -m "not slow"

## make test-all  then the slow part: every page, the whole site, all sources, fuzz, kills, exports, the audit
test-all: test
	$(TEST) -m slow

## make check     what a change touches, and nothing else (SINCE=main: since another commit; ALL=1: everything)
check: export
	OMP_NUM_THREADS=1 $(BIN)/python tools/check.py $(if $(ALL),--all,$(SINCE))

## make fuzz      change files of every kind thousands of times, and look at what is made of them
fuzz: .venv/.tools
	$(BIN)/python tests/attack.py --kills 0

## make crash     kill writers of files hundreds of times, and look at what they leave
crash: .venv/.tools
	$(BIN)/python tests/attack.py --mutations 0

## make attack    both, and write down what came of it in tests/attacks.csv
attack: .venv/.tools
	$(BIN)/python tests/attack.py --table tests/attacks.csv

## make lowest    prove the lowest versions of what is used, on Python 3.11; downloads gigabytes
lowest:
	python3.11 tools/lowest.py

## make docs      build the documentation site in _docs/, offline
docs: .venv/.tools
	$(BIN)/python tools/docs.py

## make bench     measure speed, as ratios side by side; writes benchmarks/RESULTS.md
bench: .venv/.tools
	$(BIN)/python benchmarks/bench.py

## make gpu       try everything on the accelerator there is, and write gpu-report.md, a page to send
gpu: .venv/.tools
	$(BIN)/python -W ignore benchmarks/first_hour.py

## make export    write wiseft/ from the notebooks, and the sidebar from their folders
export: .venv/.tools
	$(BIN)/nbdev_export
	$(BIN)/python tools/subpackages.py

## make clean     strip from the notebooks what has no place in version control
clean: .venv/.tools
	$(BIN)/nbdev_clean

## make refresh   run the notebooks and store what they print (NB="path ..." for some only)
refresh: .venv/.tools
	$(BIN)/python tools/refresh.py $(NB)

## make readme    write README.md from nbs/index.ipynb
readme: .venv/.tools
	$(BIN)/python tools/readme.py

.venv/.library: settings.ini setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.tools: settings.ini setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch .venv/.library $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) found: install Python $(MIN_PYTHON) or newer, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; need = tuple(map(int, "$(MIN_PYTHON)".split("."))); sys.exit(None if sys.version_info >= need else "$(PYTHON) is Python %d.%d, wiseft needs $(MIN_PYTHON) or newer: make PYTHON=/path/to/python3" % sys.version_info[:2])'
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; echo "$(PYTHON) can't make a virtual environment (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
