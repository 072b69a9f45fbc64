# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first, with what requirements.lock pins.
SHELL := /bin/bash
PYTHON ?= python3
VENV := $(CURDIR)/.venv
export PATH := $(VENV)/bin:$(PATH)
# a pinned set of threads keeps two test processes from fighting over two cores
export OMP_NUM_THREADS ?= 1
export PYTHONUNBUFFERED := 1

.PHONY: venv demo test test-slurm campaign bench lint docs site lock clean

venv: $(VENV)/.installed

demo: $(VENV)/.installed
	@mkdir -p demo_run
	python -m tokenlabel demo demo_run/data
	snakemake all results/published.csv --directory demo_run --configfile demo/config.yaml --quiet rules
	snakemake results/report.html --directory demo_run --configfile demo/config.yaml --quiet rules
	cd demo_run && tokenlabel annotate check $$(ls -td results/labels/efficientnet_lite0-* | head -1) \
	  --manifest $$(ls -td results/data/foolbox20-* | head -1) --images 6
	@echo "demo_run/results: tables, figures/, so_far/ (the rest, planned), plan.md, report.html. Twenty photographs check the machinery, not the accuracy."

# three processes for two cores: one of them often waits for Slurm
test: $(VENV)/.installed
	python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# a real slurmctld and slurmd on this machine, started and wiped by the tests: as root, and only where no other Slurm is configured
test-slurm: $(VENV)/.installed
	tests/slurm/cluster/setup.sh check
	TOKENLABEL_SLURM_TESTS=1 python -m pytest -n 0 tests/slurm

lint: $(VENV)/.installed
	ruff check . && ruff format --check . && snakefmt --check Snakefile rules && mypy && lint-imports

bench: $(VENV)/.installed
	for script in $(filter-out bench/record.py bench/counts.py,$(sort $(wildcard bench/*.py))); do python $$script || exit 1; done

# takes about an hour, beside other work; killed and started again it goes on. Commit campaign/results, then make docs.
# After it the tests of which make test runs a sample.
campaign: $(VENV)/.installed
	nice python -m campaign
	nice python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m campaign

docs: $(VENV)/.installed
	python docs/tables.py

# into site/VERSION; an older version's folder beside it stays in the list of versions
site: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

lock: $(VENV)/.installed
	pip freeze --all --exclude-editable | grep -vE '^(tokenlabel|pip)\b' > requirements.lock

clean:
	rm -rf demo_run site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet --requirement requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
