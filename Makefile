# One virtual environment in the project's root; every target sets up what it needs and is quick when that is done.
PYTHON ?= python3
PY = .venv/bin/python
# a worker takes half of the other's tests once it has none: files stay together, so do what their fixtures made
BOTH_CORES = -n 2 --dist worksteal

.PHONY: setup quickstart test test-long test-gpu lab docs clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt scripts/setup.sh
	PYTHON=$(PYTHON) bash scripts/setup.sh

quickstart: setup
	$(PY) scripts/quickstart.py

test: setup
	$(PY) -m pytest $(BOTH_CORES)

test-long: setup
	$(PY) -m pytest $(BOTH_CORES) -m "long or not long" --override-ini "timeout=1800"

test-gpu: setup
	PPT_KIT_TEST_GPU=1 $(PY) -m pytest -s -m "long or not long" tests/test_gpu.py tests/test_plan.py -k "gpu or processes_take"

lab: setup
	cd notebooks && ../.venv/bin/python ../scripts/lab.py 01_quickstart.ipynb

docs: setup
	$(PY) scripts/build_docs.py

clean:
	rm -rf .venv build outputs data .pytest_cache .mypy_cache .ruff_cache
