# Works from nothing but Python 3.11 or newer, pip and make, also under a path with spaces.
PYTHON ?= python3
PY := .venv/bin/python
# What was tested is what is installed; `make PIP_CONSTRAINT= ...` takes the newest that requirements.txt allows.
PIP_CONSTRAINT ?= requirements-lock.txt
export PIP_CONSTRAINT

.PHONY: help install demo notebook test lint golden sessions mutants clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1  \2/'

install: .venv/run ## install into .venv what the commands need, and do nothing else

demo: demo/run/test_metrics.json ## make a synthetic data set, train on it, recommend for one of its users
	$(PY) rec.py --data_dir demo/processed --run_dir demo/run --explain
	@echo "the training curve lies in demo/run/training.png; to rate movies on a page:"
	@echo ".venv/bin/python rec.py --serve --run_dir demo/run"

notebook: demo/run/test_metrics.json .venv/dev ## run notebooks/tour.ipynb on the demo; what its cells show is written into it
	$(PY) notebooks/execute.py

test: .venv/dev ## check style and types, then run the tests, a process per core; say which are skipped, and why
	$(PY) -m ruff check
	$(PY) -m mypy
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -rs

lint: .venv/dev ## check style and types, without the tests
	$(PY) -m ruff check
	$(PY) -m mypy

golden: .venv/dev ## write the figures anew that tests/test_golden.py holds runs to; a commit of them says why
	RENEW_GOLDEN=1 OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_golden.py

sessions: .venv/dev ## train the demo anew and write into the documents what their sessions print
	rm -rf demo
	$(MAKE) demo
	RENEW_SESSIONS=1 OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_sessions.py tests/page -k "sessions or pictures"

mutants: .venv/dev ## plant hundreds of faults, one at a time, and see whether the tests notice: about an hour
	$(PY) benchmarks/mutants.py

clean: ## remove the demo and the virtual environment
	rm -rf demo .venv

demo/raw/movie_titles.csv: | .venv/run
	$(PY) preprocessing/synthetic_netflix.py --out_dir demo/raw

demo/processed/meta.json: demo/raw/movie_titles.csv
	$(PY) preprocessing/netflix_preprocess.py --raw_dir demo/raw --out_dir demo/processed

demo/run/test_metrics.json: demo/processed/meta.json
	$(PY) main.py --data_dir demo/processed --run_dir demo/run --overwrite

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run: requirements.txt requirements-lock.txt | .venv/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev: requirements.txt requirements-dev.txt requirements-lock.txt | .venv/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ .venv/run
