# make app: the app in the browser · make demo: the whole story in the terminal · make quick, make test: the tests
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/
STAMP := $(VENV)/.installed
# A process for each core, four at most, and one thread each: models this small gain nothing from more. A file stays in
# one process, because its tests share servers; conftest.py puts the long ones first.
PYTEST := OMP_NUM_THREADS=1 $(RUN)python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help app demo quick test gpu lint showcase install clusters eval exchange clean

help: ## list what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{printf "make %-9s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ImmuneLab needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV): once, some minutes, 2 to 3 GB on a machine without a GPU."
	@$(RUN)python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(RUN)python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(STAMP) ## make .venv with the pinned packages (the other targets do it by themselves)

clusters: $(STAMP) ## add what sweeps on Slurm and Ray need (docs/clusters.md)
	@$(RUN)python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-clusters.lock

eval: $(STAMP) ## add the LM Evaluation Harness (docs/models.md)
	@$(RUN)python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-eval.lock

exchange: $(STAMP) ## add what the formats of other tools need (docs/exchange.md)
	@$(RUN)python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-exchange.lock

app: $(STAMP) ## start the app at http://127.0.0.1:8501
	$(RUN)streamlit run app.py

demo: $(STAMP) ## immunize, attack at every rung, report: headless, no network
	$(RUN)immunelab demo

quick: lint ## lint, types and the fast tests
	$(PYTEST) -m "not slow"

test: lint ## lint, types and all tests
	$(PYTEST)

gpu: $(STAMP) ## on a machine with an NVIDIA GPU: check and measure all that differs there, in ten minutes
	$(RUN)python benchmarks/gpu.py

lint: $(STAMP) ## ruff and mypy
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy --num-workers 2

showcase: $(STAMP) ## record the showcase anew into data/showcase
	$(RUN)immunelab showcase build

clean: ## remove what was built; the lab folder with your runs stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis test-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
