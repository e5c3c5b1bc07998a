# Two commands do everything on a machine with Python 3.11+ and git: `make reproduce` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed.stamp
# Two workers pay off on two cores: half of the suite waits for kernels, pipelines and file locks. Tests that
# share fixtures stay together until a worker runs out of work.
JOBS   ?= 2

.PHONY: help install reproduce smoke gpu test browser docs numbers families bench bench-against reference lint lock clean

help:
	@echo "make reproduce  install the environment, then make every figure and table (snakemake --cores all)"
	@echo "make test       install the environment, then run the test suite"
	@echo "make smoke      the whole pipeline on tiny settings, into results/smoke and figures/smoke"
	@echo "make gpu        the whole pipeline with config/cuda.yaml, which also measures this machine's GPU"
	@echo "make browser    run notebooks in JupyterLab under headless Chromium; screenshots in build/screenshots"
	@echo "make docs       build the documentation as a static site, build/docs/index.html; includes notebooks executed by 'make reproduce'"
	@echo "make numbers    update every generated number and table in README.md and docs/"
	@echo "make families   test every model family of the installed Transformers against eager; writes the list in docs/models.md"
	@echo "make bench      run the benchmarks (map search, memory of a model larger than its host budget)"
	@echo "make bench-against REV=...  compare this checkout's speed and memory with another revision's, interleaved"
	@echo "make reference  ship the tables just made under data/reference/{figures,tables}, and update the pages that quote them"
	@echo "make lint       ruff, mypy, import-linter, snakefmt, snakemake --lint"
	@echo "make lock       resolve the version ranges of pyproject.toml and write requirements.lock"
	@echo "make clean      remove results and figures, keep the environment"

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "needs Python 3.11, 3.12 or 3.13; choose one with PYTHON=...")'
	@echo "Installing the pinned environment into $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@echo "Compiling kernels, which takes a minute or two ..."
	@$(BIN)/python -m finemoe.simulation.warm_up
	@touch $@

reproduce: $(STAMP)
	$(BIN)/snakemake --cores all

smoke: $(STAMP)
	$(BIN)/snakemake --cores all --configfile config/smoke.yaml

gpu: $(STAMP)
	$(BIN)/snakemake --cores all --configfile config/cuda.yaml

# Compile the kernels first: compilation must not count towards the tests' time limits.
test: $(STAMP)
	$(BIN)/python -m finemoe.simulation.warm_up
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Playwright drives the operating system's Chromium (apt install chromium); it goes into build/, as nothing else needs it.
browser: $(STAMP)
	@test -d build/browser/playwright || $(BIN)/python -m pip install -qq --disable-pip-version-check --target build/browser "playwright>=1.60,<2"
	PYTHONPATH=build/browser:. $(BIN)/python -m pytest -q tests/browser

# Warnings are errors: a broken link or anchor, or a name of the API that no longer exists.
docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/docs
	@echo "Open build/docs/index.html"

numbers: $(STAMP)
	$(BIN)/python -m finemoe.artifact.docs

families: $(STAMP)
	FINEMOE_FAMILIES=all $(BIN)/python -m pytest -q tests/runtime/test_families.py tests/runtime/test_routing.py tests/runtime/test_loading.py tests/runtime/test_recorded_modes.py tests/runtime/test_generation_matrix.py
	$(BIN)/python -m tests.runtime.support_matrix

bench: $(STAMP)
	mkdir -p results
	$(BIN)/python -m pytest -q --benchmark-only --benchmark-enable --benchmark-json=results/benchmarks.json tests/benchmarks
	$(BIN)/python -m tests.benchmarks results/benchmarks.json

# The other revision is checked out and installed in build/against. For options such as `--only` and `--rounds`, run the command directly.
bench-against: $(STAMP)
	@test -n "$(REV)" || { echo "specify the other revision: make bench-against REV=8f7ffb7"; exit 2; }
	$(BIN)/python -m tests.benchmarks.against $(REV)

# The tables that a reader can compare with: those behind the figures, as this checkout made them, and the pages that quote them.
reference: reproduce
	rm -rf data/reference/figures data/reference/tables
	mkdir -p data/reference/figures/compare_systems data/reference/tables
	cp figures/*.csv figures/claims.md data/reference/figures/
	cp figures/compare_systems/*.csv data/reference/figures/compare_systems/
	cp results/engine_time_measured.csv results/paced_link_checks_measured.csv results/validate_simulator_checks.csv data/reference/tables/
	$(BIN)/python -m finemoe.artifact.docs.costs
	$(BIN)/python -m finemoe.artifact.docs

lint: $(STAMP)
	$(BIN)/ruff check finemoe tests
	$(BIN)/ruff format --check finemoe tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile $(wildcard rules/*.smk)
	$(BIN)/snakemake --lint

# All pins except pip itself, and except the packages that pip adds to torch on machines with CUDA.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -qq --disable-pip-version-check "torch==2.13.0" "setuptools>=77" ".[artifact,dev,docs,quantised,serve]"
	echo "# The reference environment, resolved on Python 3.11 by \`make lock\` from the ranges in pyproject.toml." > requirements.lock
	build/lock/bin/python -m pip freeze --all --exclude finemoe --exclude pip \
		| sed 's/+cpu$$//' | grep -vE '^(nvidia-|cuda-|triton)' >> requirements.lock
	$(MAKE) environment.yml

# The same pins for conda, which cannot read them from a file that Snakemake may move.
environment.yml: requirements.lock
	printf '%s\n' '# The pins of requirements.lock for conda users; written by `make environment.yml`.' 'name: finemoe' 'channels:' \
		'  - conda-forge' 'dependencies:' '  - python=3.11' '  - pip' '  - pip:' > $@
	grep -v '^#' requirements.lock | sed 's/^/      - /' >> $@

clean:
	rm -rf results $(filter-out figures/README.md,$(wildcard figures/*))
