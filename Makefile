# `make quickstart` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow notebooks docs testbed real lint clean

quickstart: .venv/ready
	$(BIN)/lightning fit --config configs/quickstart.yaml

# One thread per process: on models this small, threads only wait.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

test: .venv/ready lint
	$(PYTEST) -m 'not slow and not notebook'

# What starts processes, kills them, or puts a thousand questions: some minutes more.
test-slow: .venv/ready
	$(PYTEST) -m slow

# Runs each notebook, which takes some minutes.
notebooks: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -m notebook

# Builds the pages and the API reference into site/; a warning is an error. It needs no torch, and no network.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Trains the test-bed's models, for hours on two cores; what is done, or half done, is not done again.
testbed: .venv/ready
	$(BIN)/python -m lightning_mllm.testbed.training.recipe checkpoints/testbed

# Makes and examines the model of real parts, for hours on two cores; `make real PARTS=folder` of docs/real_llm.md. VISION
# and LLM are hub ids or folders. Like the test-bed, it goes on where it was.
PARTS ?= parts
VISION ?= facebook/dinov2-small
LLM ?= HuggingFaceTB/SmolLM2-135M-Instruct
real: .venv/ready
	$(BIN)/python -m lightning_mllm.real.recipe --parts $(PARTS) --vision $(VISION) --llm $(LLM)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The environment, with the tested versions; made anew when the requirements change.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build site *.egg-info
