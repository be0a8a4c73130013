# make demo    train, evaluate and draw on generated data; results in output/demo (ARGS="--resume", ARGS="--iters 100" ...)
# make test    all tests but the slow ones (ARGS="tests/structures -x" selects; ARGS="-m slow" runs the slow ones)
# make check   format, lint, types, layers, docstrings, the shape of the source tree, words, forms of the repository
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
#   VERSIONS=lowest     the lowest versions that pyproject.toml allows, or the newest; default: those of constraints.txt
# After a change of CPU=, CUDA= or VERSIONS= run `make clean` first.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
UV := $(BIN)/uv$(if $(filter Windows_NT,$(OS)),.exe)
TORCH_BACKEND := $(if $(CPU),cpu,$(CUDA))
RESOLUTION := $(if $(VERSIONS),--resolution $(if $(filter lowest,$(VERSIONS)),lowest-direct,highest),-c constraints.txt)
INSTALL = $(UV) pip install --python $(BIN)/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) $(RESOLUTION)

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
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --cases 20000 $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

release: | $(UV)
	$(BIN)/python tools/release.py $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) $(ARGS)

clean:
	rm -rf $(VENV) output/demo build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.run: pyproject.toml constraints.txt | $(UV)
	$(INSTALL) -e .
	@touch $@

# The tests start many processes; where Python may not write bytecode, each would compile PyTorch for itself.
$(VENV)/.dev: pyproject.toml constraints.txt | $(UV)
	$(INSTALL) --compile-bytecode -e '.[dev]'
	@touch $(VENV)/.run $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(UV)
	$(INSTALL) -e '.[docs]'
	@touch $(VENV)/.run $@
