# make install | test | lint | demo | clean
#
# Everything is installed into .venv, at the versions of constraints.txt. Where PyPI would bring torch with CUDA and the
# CPU build is enough:  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: install test lint demo clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed

$(VENV)/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "pyro_nri needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1): name another with PYTHON=..."; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian and Ubuntu: python3-venv)"; exit 1; }

# A venv keeps the file dates of the machine that made it, so pip is an order-only prerequisite.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing into $(VENV) ... a few minutes the first time"
	@$(PIP_INSTALL) -e '.[test]'
	@touch $@
	@echo "Installed into $(VENV)"

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the checkers into $(VENV) ..."
	@$(PIP_INSTALL) -e '.[test,dev]'
	@touch $@

# One thread in each worker: two workers with a thread pool each would wait for one another.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: install
	$(BIN)/pyro-nri demo --out demo_output

clean:
	rm -rf $(VENV) build dist demo_output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pyro_nri tests analyses benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
