# Two commands on a fresh machine: `make demo` runs the main job, `make test` proves it.
PYTHON ?= python3
# The CPU build by default, so that a laptop does not draw gigabytes of CUDA; `make TORCH=torch demo`
# takes what the registry has by that name, which on Linux is the GPU build.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Processes that test side by side, each on one thread. A file stays in one of them; those that take long come first.
JOBS ?= 2
TEST = $(BIN)/pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-all lint check coverage bench clean
demo: .venv/installed
	$(BIN)/nissl demo

test: .venv/installed
	$(TEST)

# With the slides at full size, fifty kills, and every member on four threads: for a machine with time and memory.
test-all: .venv/installed
	$(TEST) -m ''

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

check: lint test

# Lines that the tests run, in child processes too: 92 % of all, 97 % of the packages that a number passes through.
coverage: .venv/installed
	$(TEST) --cov --cov-report=
	$(BIN)/coverage report --skip-covered --fail-under=92
	for package in data metrics training evaluation; do $(BIN)/coverage report --include="*/nissl/$$package/*" --fail-under=97 || exit 1; done

bench: .venv/installed
	for file in benchmarks/*_step.py benchmarks/check_folder.py benchmarks/bench_workers.py; do $(BIN)/python $$file || exit 1; done

# The environment is built once; it is renewed only when the dependencies change.
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info

# The pages of docs/ and the reference of the API, in site/. A broken link or a name that is gone is an error.
.PHONY: docs dist
docs: .venv/installed
	$(BIN)/python tools/draw_architecture.py
	$(BIN)/mkdocs build --strict --quiet

# dist/: a wheel, and the sdist that it is built from.
dist: .venv/installed
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
