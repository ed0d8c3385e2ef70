# Commands that do their own set-up: `make demo`, `make test` and `make docs`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs

# Two processes; a file's tests stay together.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo docs test test-slow test-cluster lint types resolve sizes clean

demo: $(VENV)/.installed
	$(BIN)/l2g-ray suite --bench demo --out $(OUT) $(OPTIONS)

# The site, built strictly into site/ and then served. Tests build it too (tests/test_docs.py).
docs: $(VENV)/.installed
	$(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m mkdocs serve

test: $(VENV)/.installed lint types
	$(BIN)/python -m pytest $(TWO) -m "not slow and not cluster"

# Whole suites, a page's commands one by one, servers that go away: the minutes that `make test` leaves out. CI runs both.
test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest $(TWO) -m "slow and not cluster"

# Killed processes, lost machines, full disks: minutes each.
test-cluster: $(VENV)/.installed
	$(BIN)/python -m pytest -m cluster

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

# Whether the pinned versions fit another Python, without installing them: make resolve PYTHON=python3.13
resolve:
	$(PYTHON) -m venv --clear build/resolve
	build/resolve/bin/pip install --quiet --dry-run --ignore-installed --report build/resolve/report.json -c constraints.txt '.[all]'
	$(PYTHON) scripts/install_sizes.py --resolved build/resolve/report.json

# Packages and megabytes of the base and of each extra, of what .venv has: the table of docs/install.md.
sizes: $(VENV)/.installed
	$(BIN)/python scripts/install_sizes.py

# torch goes first and alone, so that an index with a CPU build of exactly this version can serve it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo]'
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
