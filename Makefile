# Every target does its own set-up in .venv; from a fresh clone `make run` and `make test` are all that is needed.
# make run ARGS="--set sae.d_sae=8192"    PYTHON=python3.12 make install    make test ARGS="-k doctor"
ARGS ?=
PYTHON ?=
PROFILE ?= laptop
PY := .venv/bin/python
export PYTHON
.PHONY: help install run test lab bench interop check-toy doctor lint clean

help:
	@echo "make run        set up, then the whole job at the laptop profile: runs/laptop/report.md (other settings: ARGS=\"--set ...\")"
	@echo "make test       set up, then the tests"
	@echo "make lab        JupyterLab on the notebooks"
	@echo "make install    the set-up alone    make doctor  what is off on this machine    make lint  ruff, direction of imports"
	@echo "make bench      benchmarks          make check-toy  the toy models against their known results"
	@echo "make interop    our folders opened by SAELens, in an environment of its own"
	@echo "make clean      remove .venv and caches (runs/ stays)"

install: .venv/.installed

.venv/.installed: requirements.txt constraints.txt pyproject.toml scripts/install.sh
	@scripts/install.sh requirements.txt
	@touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	@scripts/install.sh requirements-dev.txt
	@touch $@

.venv-saelens/.installed: requirements-saelens.txt
	@VENV=.venv-saelens CONSTRAINTS=/dev/null scripts/install.sh requirements-saelens.txt
	@touch $@

run: .venv/.installed
	@scripts/chromium.sh || true
	$(PY) -m suite run --profile $(PROFILE) $(ARGS)

test: .venv/.installed-dev
	@scripts/chromium.sh || true
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --durations=10 $(ARGS)

lab: .venv/.installed
	$(PY) -m jupyter lab notebooks $(ARGS)

bench: .venv/.installed
	$(PY) -m benchmarks $(ARGS)

interop: .venv/.installed .venv-saelens/.installed
	$(PY) tests/interop/write_folders.py runs/interop
	.venv-saelens/bin/python tests/interop/open_in_saelens.py runs/interop
	$(PY) tests/interop/read_back.py runs/interop

check-toy: .venv/.installed
	$(PY) -m benchmarks.toy_gates $(ARGS)

doctor: .venv/.installed
	$(PY) -m suite doctor --profile $(PROFILE) $(ARGS)

lint: .venv/.installed-dev
	$(PY) -m ruff check . $(ARGS)
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports --no-cache

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
