# make demo: train the sentiment application on its built-in data; make test: all checks and the fast tests.
# Both install what they need into .venv first.

VENV := .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := $(VENV)/bin
# Every process holds a TensorFlow of its own, up to 2 GB.
PARALLEL := --numprocesses logical --maxprocesses 4

.PHONY: install demo test check fast slow clean
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 with venv is needed; none was found" >&2; exit 1; }
	@echo "installing into $(VENV) (about 3 GB, one or two minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --no-compile --editable ".[dev]"
	@touch $@

demo: install
	$(BIN)/loom train sentiment

test: install
	@$(MAKE) --jobs 2 check fast

fast: install
	$(BIN)/pytest $(PARALLEL) --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: install
	$(BIN)/pytest -m slow $(PARALLEL) --dist worksteal

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
