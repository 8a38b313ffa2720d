# make quickstart   environment, pretraining on the bundled photographs, evaluation, export
# make test         environment, the fast tests
# make test-all     environment, all tests
# make lint         environment, ruff and mypy
# make docs         environment, the pages of docs/ with the reference of the Python API, in build/site
# make clean        removes the environment and the runs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SUITE := $(VENV)/.suite

# two workers; each computes with one thread, as the tensors of the tests are small
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

.PHONY: quickstart test test-all lint docs clean

quickstart: $(READY)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/pretrain.py --config configs/pretrain/quickstart.yaml

test: $(READY) $(SUITE)
	$(PYTEST) -m "not slow"

test-all: $(READY) $(SUITE)
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(READY): requirements.txt setup.py
	@echo "Making the environment in $(VENV) and installing requirements.txt: a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch by itself first, so that nothing else draws in another build of it
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $(READY)

# transformers' own tests of models; where they cannot be fetched, the tests that run them fail and say so
$(SUITE): $(READY) tests/backbones/fetch_suite.py
	-$(BIN)/python tests/backbones/fetch_suite.py && touch $(SUITE)

clean:
	rm -rf $(VENV) runs build *.egg-info src/*.egg-info
