# make quickstart   environment, pretraining on the bundled photographs, evaluation, export
# make test         environment, tests
# make lint         environment, linters
# make clean        removes the environment and the runs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test lint clean

quickstart: $(READY)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/pretrain.py --config configs/pretrain/quickstart.yaml

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): requirements.txt setup.py
	@echo "Making the environment in $(VENV) and installing requirements.txt: a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch by itself first, so that nothing else draws in another build of it
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $(READY)

clean:
	rm -rf $(VENV) runs build *.egg-info src/*.egg-info
