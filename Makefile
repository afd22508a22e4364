# Every target makes the environment it needs; once it stands, that costs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What follows is taken from make's command line alone: a shell's OUT or ROOT means something else.

# What to run: an experiment's path below experiments/, without .yaml.
EXP :=
# Options handed on to the command line as they are, e.g. ARGS="--trainer.max_epochs 1".
ARGS :=
# RESUME=1 continues the newest run of EXP where its last checkpoint stands.
RESUME :=
# The checkpoint of validate, arms, chat and export; empty takes the best one of the newest run of EXP.
CKPT :=
# Where make export writes to, where empty takes the run's folder, or make triplets (.jsonl), make
# dialogues or make rewrite (.json) or make rounds (.png).
OUT :=
# MERGED=1 adds adapters to their base in make export.
MERGED :=
# Captions (pairs.jsonl, or LLaVA's .json) that make triplets asks about, and which model it or make
# rewrite asks.
PAIRS :=
LLM :=
# What to submit (cirr, circo), or whose data to check; without a name, make data-check lists all.
# What make dialogues plays, or make rewrite reads: world, chatir or folder.
BENCH :=
# The data folder to check, where empty tells where the data come from; that of make dialogues and rewrite; or
# the images of make chat, where empty takes pictures of the built-in world.
ROOT :=
# An image whose rank make chat tells after each answer.
TARGET :=
# The image of make demo; empty takes a scene of the built-in world.
IMAGE :=
# What to compare, e.g. EXPS="collm collm_finetune"; empty takes every experiment that has run.
EXPS :=

EXPERIMENTS := $(shell find experiments -name '*.yaml' ! -name '_*' ! -path '*/overlays/*' \
	| sed 's|^experiments/||; s|\.yaml$$||' | LC_ALL=C sort)
SUBMISSIONS := $(patsubst experiments/overlays/submission_%.yaml,%,\
	$(wildcard experiments/overlays/submission_*.yaml))
CIRLAB := $(BIN)/python -m cirlab
# Each begins with the blank that separates it from what stands before.
CHECKPOINT = $(if $(CKPT), --ckpt_path "$(CKPT)")
OPTIONS = $(if $(ARGS), $(ARGS))

.DEFAULT_GOAL := help
.PHONY: help train validate arms export submission chat demo data-check triplets dialogues rewrite compare \
	rounds dashboard test lint bench zoo clean known-experiment known-submission known-captions \
	known-dialogues known-rewriting

help: ## list the targets
	@echo "make <target> [EXP=name] [ARGS=\"--options\"]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "experiments: $(EXPERIMENTS)"

train: known-experiment $(READY) ## train and evaluate EXP; RESUME=1 continues its newest run
	$(CIRLAB) fit -c experiments/$(EXP).yaml$(if $(RESUME), --resume true)$(OPTIONS)

validate: known-experiment $(READY) ## evaluate CKPT of EXP (default: the best of its newest run)
	$(CIRLAB) validate -c experiments/$(EXP).yaml$(CHECKPOINT)$(OPTIONS)

arms: known-experiment $(READY) ## evaluate each of experiments/EXP/ with CKPT of EXP, and compare them
	$(BIN)/python -m cirlab.arms $(EXP)$(CHECKPOINT)$(OPTIONS)

export: known-experiment $(READY) ## write CKPT of EXP (default: the best of its newest run) for other libraries; OUT=folder, MERGED=1
	$(CIRLAB) export -c experiments/$(EXP).yaml$(CHECKPOINT)$(if $(OUT), --output "$(OUT)")$(if $(MERGED), --merged true)$(OPTIONS)

submission: known-experiment known-submission $(READY) ## rank BENCH's test split with CKPT of EXP for its server
	$(CIRLAB) validate -c experiments/$(EXP).yaml -c experiments/overlays/submission_$(BENCH).yaml$(CHECKPOINT)$(OPTIONS)

chat: known-experiment $(READY) ## find an image of ROOT by talking, with CKPT of EXP; TARGET=image tells its rank
	$(CIRLAB) chat -c experiments/$(EXP).yaml$(CHECKPOINT)$(if $(ROOT), --root "$(ROOT)")$(if $(TARGET), --target "$(TARGET)")$(OPTIONS)

demo: $(READY) ## describe IMAGE, answer about it, embed it, match it with texts; ARGS=--help lists models
	$(BIN)/python -m cirlab.demo$(if $(IMAGE), --image "$(IMAGE)")$(OPTIONS)

data-check: $(READY) ## tell what of BENCH's data lies in ROOT; ARGS=--help lists options
	$(BIN)/python -m cirlab.data_check$(if $(BENCH), $(BENCH))$(if $(ROOT), --root "$(ROOT)")$(OPTIONS)

triplets: known-captions $(READY) ## have LLM invent a change to each caption of PAIRS, into OUT; runs go on where they were
	$(BIN)/python -m cirlab.triplets --pairs "$(PAIRS)" --model "$(LLM)" --output "$(OUT)"$(OPTIONS)

dialogues: known-dialogues $(READY) ## play dialogues over BENCH into OUT, by who asks and answers in ARGS; runs go on where they were
	$(BIN)/python -m cirlab.dialogue --benchmark "$(BENCH)"$(if $(ROOT), --root "$(ROOT)") --output "$(OUT)"$(OPTIONS)

rewrite: known-rewriting $(READY) ## have LLM turn BENCH's dialogues into a caption a round, into OUT; runs go on where they were
	$(BIN)/python -m cirlab.dialogue.rewrite --benchmark "$(BENCH)"$(if $(ROOT), --root "$(ROOT)") --model "$(LLM)" --output "$(OUT)"$(OPTIONS)

compare: $(READY) ## print the results of EXPS="a b" side by side (default: all); ARGS="--by facet"
	$(BIN)/python -m cirlab.reporting.compare$(if $(EXPS), $(EXPS))$(OPTIONS)

rounds: $(READY) ## plot dialogues of EXPS="a b" by round, into OUT (default: rounds.png)
	$(BIN)/python -m cirlab.reporting.rounds$(if $(EXPS), $(EXPS))$(if $(OUT), -o "$(OUT)")$(OPTIONS)

dashboard: $(READY) ## open the MLflow page of all runs (Ctrl-C ends it)
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db$(OPTIONS)

test: lint $(READY) ## lint, types, import contract and all tests
	$(BIN)/pytest$(OPTIONS)

lint: $(READY) ## lint, formatting, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure, as ratios within one run
	$(BIN)/python -m bench$(OPTIONS)

zoo: $(READY) ## train the small pretrained models of the built-in world again
	$(CIRLAB) fit -c experiments/zoo/clip.yaml$(OPTIONS)
	$(CIRLAB) fit -c experiments/zoo/llm.yaml$(OPTIONS)
	$(CIRLAB) fit -c experiments/zoo/tower.yaml$(OPTIONS)
	$(CIRLAB) fit -c experiments/zoo/mllm.yaml$(OPTIONS)
	$(CIRLAB) fit -c experiments/zoo/rewriter.yaml$(OPTIONS)
	$(CIRLAB) fit -c experiments/zoo/blip_tower.yaml$(OPTIONS)
	$(CIRLAB) fit -c experiments/zoo/blip_contrast.yaml$(OPTIONS)
	$(CIRLAB) fit -c experiments/zoo/blip.yaml$(OPTIONS)
	$(CIRLAB) fit -c experiments/zoo/autoencoder.yaml$(OPTIONS)
	$(CIRLAB) fit -c experiments/zoo/painter.yaml$(OPTIONS)
	$(BIN)/python -m cirlab.zoo.manifest

clean: ## remove caches and the environment; runs and results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A wrong name is told before anything is installed; of a right one nothing is shown.
is_one = $(and $(filter 1,$(words $(1))),$(filter $(2),$(1)))
refuse = @echo "$(1); choose one of:" >&2; printf '  %s\n' $(2) >&2; exit 2

known-experiment:
	$(if $(call is_one,$(EXP),$(EXPERIMENTS)),,$(call refuse,$(if $(EXP),there is no experiment '$(EXP)',EXP is not set),$(EXPERIMENTS)))

known-submission:
	$(if $(call is_one,$(BENCH),$(SUBMISSIONS)),,$(call refuse,$(if $(BENCH),'$(BENCH)' has no server,BENCH is not set),$(SUBMISSIONS)))

known-captions:
	$(if $(and $(PAIRS),$(LLM),$(OUT)),,@echo "triplets need PAIRS=<pairs.jsonl> LLM=<model> OUT=<triplets.jsonl>" >&2; exit 2)

known-dialogues:
	$(if $(and $(BENCH),$(OUT)),,@echo "dialogues need BENCH=<world, chatir or folder> OUT=<dialogues.json>" >&2; exit 2)

known-rewriting:
	$(if $(and $(BENCH),$(LLM),$(OUT)),,@echo "rewrite needs BENCH=<world, chatir or folder> LLM=<model> OUT=<rewritten.json>" >&2; exit 2)

REFUSE_OLD_PYTHON := 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=<path>")'

$(READY): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c $(REFUSE_OLD_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@
