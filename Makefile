# Every target makes the environment it needs; once it stands, that costs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What to run: an experiment's path below experiments/, without .yaml.
EXP ?=
# Options handed on to the command line as they are, e.g. ARGS="--trainer.max_epochs 1".
ARGS ?=
# RESUME=1 continues the newest run of EXP where its last checkpoint stands.
RESUME ?=
# The checkpoint to validate or export; empty takes the best one of the newest run of EXP.
CKPT ?=
# Where make export writes to, where empty takes the run's folder, or make triplets (.jsonl).
OUT ?=
# MERGED=1 adds adapters to their base in make export.
MERGED ?=
# Captions (pairs.jsonl, or LLaVA's .json) that make triplets asks about, and which model it asks.
PAIRS ?=
LLM ?=
# What to submit (cirr, circo), or whose data to check; without a name, make data-check lists all.
BENCH ?=
# The data folder to check; empty tells where the data come from.
ROOT ?=
# What to compare, e.g. EXPS="collm collm_finetune"; empty takes every experiment that has run.
EXPS ?=

EXPERIMENTS := $(shell find experiments -name '*.yaml' ! -name '_*' ! -path '*/overlays/*' \
	| sed 's|^experiments/||; s|\.yaml$$||' | LC_ALL=C sort)
SUBMISSIONS := $(patsubst experiments/overlays/submission_%.yaml,%,\
	$(wildcard experiments/overlays/submission_*.yaml))
CIRLAB := $(BIN)/python -m cirlab
CHECKPOINT = $(if $(CKPT),--ckpt_path "$(CKPT)")

.DEFAULT_GOAL := help
.PHONY: help train validate export submission data-check triplets compare dashboard test lint \
	bench zoo clean known-experiment known-submission known-captions

help: ## list the targets
	@echo "make <target> [EXP=name] [ARGS=\"--options\"]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "experiments: $(EXPERIMENTS)"

train: known-experiment $(READY) ## train and evaluate EXP; RESUME=1 continues its newest run
	$(CIRLAB) fit -c experiments/$(EXP).yaml $(if $(RESUME),--resume true) $(ARGS)

validate: known-experiment $(READY) ## evaluate CKPT of EXP (default: the best of its newest run)
	$(CIRLAB) validate -c experiments/$(EXP).yaml $(CHECKPOINT) $(ARGS)

export: known-experiment $(READY) ## write what CKPT of EXP learned for other libraries to load; OUT=folder, MERGED=1
	$(CIRLAB) export -c experiments/$(EXP).yaml $(CHECKPOINT) $(if $(OUT),--output "$(OUT)") \
		$(if $(MERGED),--merged true) $(ARGS)

submission: known-experiment known-submission $(READY) ## rank BENCH's test split with CKPT of EXP for its server
	$(CIRLAB) validate -c experiments/$(EXP).yaml -c experiments/overlays/submission_$(BENCH).yaml $(CHECKPOINT) $(ARGS)

data-check: $(READY) ## tell what of BENCH's data lies in ROOT; ARGS=--help lists options
	$(BIN)/python -m cirlab.data_check $(BENCH) $(if $(ROOT),--root "$(ROOT)") $(ARGS)

triplets: known-captions $(READY) ## have LLM invent a change to each caption of PAIRS, into OUT; runs go on where they were
	$(BIN)/python -m cirlab.triplets --pairs "$(PAIRS)" --model "$(LLM)" --output "$(OUT)" $(ARGS)

compare: $(READY) ## print the results of EXPS="a b" side by side (default: all)
	$(BIN)/python -m cirlab.reporting.compare $(EXPS) $(ARGS)

dashboard: $(READY) ## open the MLflow page of all runs (Ctrl-C ends it)
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db $(ARGS)

test: lint $(READY) ## lint, types, import contract and all tests
	$(BIN)/pytest $(ARGS)

lint: $(READY) ## lint, formatting, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure, as ratios within one run
	$(BIN)/python -m bench $(ARGS)

zoo: $(READY) ## train the small pretrained models of the built-in world again
	$(CIRLAB) fit -c experiments/zoo/clip.yaml $(ARGS)
	$(CIRLAB) fit -c experiments/zoo/llm.yaml $(ARGS)
	$(CIRLAB) fit -c experiments/zoo/tower.yaml $(ARGS)
	$(CIRLAB) fit -c experiments/zoo/mllm.yaml $(ARGS)
	$(BIN)/python -m cirlab.zoo.manifest

clean: ## remove caches and the environment; runs and results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A wrong name is told before anything is installed.
known-experiment:
	@test -n "$(filter $(EXP),$(EXPERIMENTS))" || { \
		if test -z "$(EXP)"; then echo "EXP is not set; choose one of:" >&2; \
		else echo "there is no experiment '$(EXP)'; choose one of:" >&2; fi; \
		printf '  %s\n' $(EXPERIMENTS) >&2; exit 2; }

known-submission:
	@test -n "$(filter $(BENCH),$(SUBMISSIONS))" || { \
		if test -z "$(BENCH)"; then echo "BENCH is not set; choose one of:" >&2; \
		else echo "'$(BENCH)' has no server; choose BENCH from:" >&2; fi; \
		printf '  %s\n' $(SUBMISSIONS) >&2; exit 2; }

known-captions:
	@test -n "$(PAIRS)" && test -n "$(LLM)" && test -n "$(OUT)" || { \
		echo "triplets need PAIRS=<pairs.jsonl> LLM=<model> OUT=<triplets.jsonl>" >&2; exit 2; }

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=<path>")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@
