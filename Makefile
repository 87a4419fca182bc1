# One command each, on a machine that has only make and Python >= 3.11 with pip. See CONTRIBUTING.md.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# No network while testing or demonstrating: everything needed is in the repository.
OFFLINE := HF_HUB_OFFLINE=1
# One per core: a process of its own for each keeps torch to one thread, which is faster for small tensors.
TEST_PROCESSES ?= auto

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-browser lint format docs bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv with mmalign in it, editable, at the tested versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "mmalign: '$(PYTHON)' was not found. Install Python 3.11 or newer, or say which one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; ok = sys.version_info >= (3, 11); ok or sys.stderr.write("mmalign: got Python %d.%d from \"$(PYTHON)\", expected 3.11 or newer. Say which one to use: make PYTHON=python3.12\n" % sys.version_info[:2]); sys.exit(0 if ok else 1)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	@touch $@

demo: $(STAMP)  ## align the toy image world, compare, write report.html
	$(OFFLINE) $(BIN)/mmalign demo

# The shape hook checks every annotated tensor but breaks torch.compile(fullgraph=True), hence two calls. The second one
# opens the files that have such tests and no others: reading all of them would take as long as running these.
# Compiled files are kept, whatever the environment says: tests start many processes.
test: $(STAMP)  ## all fast tests
	$(OFFLINE) OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_PROCESSES) --maxprocesses 8 --dist loadfile \
	  -m "not compiled and not slow and not gpu and not browser"
	$(OFFLINE) $(BIN)/python -m pytest -o addopts="" --import-mode=importlib --strict-markers --strict-config -ra \
	  -n $(TEST_PROCESSES) --maxprocesses 8 --dist loadfile -m "compiled and not slow and not gpu" $$(grep -rl "mark\.compiled" tests --include='test_*.py')

test-slow: $(STAMP)  ## the long ones: worlds, recipes, kill and resume
	$(OFFLINE) $(BIN)/python -m pytest -m "slow and not compiled and not gpu"
	$(OFFLINE) $(BIN)/python -m pytest -o addopts="" --import-mode=importlib --strict-markers --strict-config -ra \
	  -m "compiled and slow and not gpu" $$(grep -rl "mark\.compiled" tests --include='test_*.py')

test-browser: $(STAMP)  ## the evaluation page in a headless Chromium (the system's, else: playwright install chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(OFFLINE) $(BIN)/python -m pytest -m browser

lint: $(STAMP)  ## ruff, mypy --strict, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## renew the generated tables of the README and the catalogue
	$(OFFLINE) $(BIN)/mmalign methods --update README.md
	$(OFFLINE) $(BIN)/mmalign methods --update docs/catalogue.md

bench: $(STAMP)  ## every benchmark on the CPU, about half an hour: benchmarks/run.py says which
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

clean:  ## remove caches and build outputs, keep .venv and runs
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find mmalign tests diffusion benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
