# make demo    train, evaluate and draw on generated data; results in output/demo (ARGS="--resume", ARGS="--iters 100" ...)
# make test    all tests but the slow ones (ARGS="tests/structures -x" selects; ARGS="-m slow" runs the slow ones)
# make check   format, lint, types, layers, docstrings, the shape of the source tree, words
# make fuzz    hostile and damaged files for all readers (ARGS="--cases 2000 --kind yaml"; 20,000 cases by default)
# make bench   the table of speeds, in some minutes (ARGS="--only inference --output after.json"; benchmarks/run.py)
# make docs    the documentation, to site/
# make release the files of a release, tried in fresh environments (ARGS="--write", ARGS="--build-only"; tools/release.py)
# make clean   remove what the other targets made (of output/ only output/demo: your own runs stay)
#
# Each target makes .venv and installs what it needs, at no cost when nothing has changed.
#   PYTHON=python3.12   the interpreter of .venv (when it is made)
#   CPU=1               the CPU build of PyTorch: smaller, enough for the demo and the tests
#   CUDA=cu128          the build of PyTorch for that CUDA version; default: the newest one
# After a change of CPU= or CUDA= run `make clean` first.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
TORCH_BACKEND := $(if $(CPU),cpu,$(CUDA))
INSTALL = $(BIN)/uv pip install --python $(BIN)/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) -c constraints.txt

.PHONY: demo test check fuzz bench docs release clean

demo: $(VENV)/.run
	$(BIN)/detectron2 demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/pydoclint --quiet detectron2 tools
	$(BIN)/python tests/meta/test_house.py
	$(BIN)/python tests/meta/test_words.py

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --cases 20000 $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

release: | $(BIN)/uv
	$(BIN)/python tools/release.py $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) $(ARGS)

clean:
	rm -rf $(VENV) output/demo build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) -e .
	@touch $@

# The tests start many processes; where Python may not write bytecode, each would compile PyTorch for itself.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) --compile-bytecode -e '.[dev]'
	@touch $(VENV)/.run $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/uv
	$(INSTALL) -e '.[docs]'
	@touch $(VENV)/.run $@
