# Everything runs in $(VENV), which the first target that needs it makes from $(PY).
#   make test PY=python3.12            with another Python (the environment is made anew)
#   make test ARGS="-k ridge -x"       arguments for pytest
#   make demo OUT=elsewhere            where the demo writes

PY ?= python3
VENV ?= .venv
OUT ?= dargmin-out
RESULTS ?= benchmarks/results
ARGS ?=

BIN := $(VENV)/bin
# A stamp says what was installed and for which Python: another PY finds no stamp, and installs.
DEMO := $(VENV)/.installed-studies-$(notdir $(PY))
DEV := $(VENV)/.installed-dev-$(notdir $(PY))
SITE := $(VENV)/.installed-docs-$(notdir $(PY))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # one environment: two pips at once would break it
.PHONY: help demo test lint docs bench figures pins clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile

demo: $(DEMO) ## the main job on real data: the curse of unrolling on breast_cancer
	$(BIN)/dargmin curse --data breast_cancer --model ridge --out $(OUT)
	@echo "The figure, the table and the data are in $(OUT)/."

test: $(DEV) ## the tests but for the slow ones (ARGS="-m ''" runs those too)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

lint: $(DEV) ## ruff (rules and format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(SITE) ## the site, into docs/_build/html, offline; any warning fails (runs the examples, small)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "Open docs/_build/html/index.html."

bench: $(DEV) ## all tables, into benchmarks/results (about two hours)
	$(BIN)/python -m benchmarks --out $(RESULTS)
	$(BIN)/python benchmarks/calibration.py --out $(RESULTS)
	$(BIN)/python benchmarks/memory.py --out $(RESULTS)
	$(BIN)/python benchmarks/methods.py --out $(RESULTS)
	$(BIN)/python benchmarks/plans.py --out $(RESULTS)
	$(BIN)/python benchmarks/warm_start.py --out $(RESULTS)
	$(BIN)/python benchmarks/estimators.py --out $(RESULTS)

figures: $(DEMO) ## the figures of the-curse-explained.md (those of README.md: docs/figures/studies.py)
	$(BIN)/python docs/figures/make.py

pins: ## write constraints.txt anew (what still fits stays; delete the file first to move everything)
	$(ENVIRONMENT)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
	    --no-header --no-annotate --output-file constraints.txt pyproject.toml

clean: ## remove the environment, the caches, the site and dargmin-out
	rm -rf $(VENV) dargmin-out build dist .pytest_cache .ruff_cache .hypothesis
	rm -rf docs/_build docs/gallery docs/measurements
	find src tests benchmarks docs examples -type d -name __pycache__ -prune -exec rm -rf {} +

# What `dev` installs contains what `studies` does.
$(DEV): pyproject.toml constraints.txt
	$(ENVIRONMENT)
	$(call INSTALL,dev)
	@touch $(DEV) $(DEMO)

$(DEMO): pyproject.toml constraints.txt
	$(ENVIRONMENT)
	$(call INSTALL,studies)
	@touch $(DEMO)

$(SITE): pyproject.toml constraints.txt
	$(ENVIRONMENT)
	$(call INSTALL,docs)
	@touch $(SITE)

# An environment that has no pip (interrupted or incomplete) or another Python is made anew. Where
# Python comes without ensurepip (Debian keeps it in a package of its own), PY's pip installs pip.
define ENVIRONMENT
@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || { echo "dargmin needs Python >= 3.11, and $(PY) is older or missing." \
              "Name one: make PY=python3.12 ..." >&2; exit 1; }
@{ $(BIN)/python -m pip --version && test "$$($(BIN)/python -V)" = "$$($(PY) -V)"; } >/dev/null 2>&1 \
    || $(PY) -m venv --clear $(VENV) \
    || { echo "Going on without ensurepip." \
         && $(PY) -m venv --clear --without-pip $(VENV) \
         && $(PY) -m pip --python $(BIN)/python install --quiet pip; }
endef

define INSTALL
@echo "Installing dargmin[$(1)] into $(VENV) (the first time, about a minute) ..."
@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(1)]"
endef
