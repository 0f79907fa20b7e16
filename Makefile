# stable-audio-3-trainer. `make run` does the whole main job on the example; `make test` runs the tests.
# Variables: DATA MODEL STEPS RANK ADAPTER NAME FLAGS, PROMPT (what `make run` lets hear), SECONDS (of `make tiny-base`),
# and TORCH for another build of torch.

PYTHON  ?= python3
TORCH   ?= torch==2.13.0
VENV    := .venv
BIN     := $(VENV)/bin
SA3     := $(BIN)/sa3-trainer

EXAMPLE := artifacts/example.zip
# Clips of the example's style that it does not hold.
HELD_OUT := artifacts/example_held_out
DATA    ?= $(EXAMPLE)
MODEL   ?= tiny-base
STEPS   ?= 600
RANK    ?= 16
ADAPTER ?= dora-rows
NAME    ?=
# Only the example is made here; any other DATA is a path or an address that make must not look at.
MADE    := $(if $(filter-out $(EXAMPLE),$(DATA)),,$(EXAMPLE))
FLAGS   ?=
# What is heard at the end of `make run`, on the example alone: no other data is known to be of its style.
PROMPT  ?= zarnel pluck, A minor, 100 bpm
HEARD    = $(and $(MADE),$(filter tiny-base,$(MODEL)),$(if $(filter --weights% --model% --recipe%,$(FLAGS)),,yes))
# A run that has nothing to do names the adapter: another training's files of the name asked for are not replaced.
HEAR     = @adapter=$$($(SA3) run $(REQUEST) --pre-encode --json 2>/dev/null | $(FIRST_FILE)) && \
	$(SA3) generate "$(PROMPT)" --model tiny --adapter "$$adapter" --seconds 5 --steps 20 --seed 2 \
	--compare --like $(HELD_OUT) --out "$${adapter%.safetensors}.wav"
FIRST_FILE = $(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)["files"][0])'
# `make tiny-base`: wall clock of each of the two long trainings, and settings of each step. docs/measurements/tiny-base.md
# has those of the weights that ship.
SECONDS           ?= 540
AUTOENCODER_FLAGS ?= --varied --reuse 200 --set latent_channels=128 chunk_frames=4 compiled=true batch_size=32 last_rate=0.0
JUDGE_FLAGS       ?= --seconds 75 --copies
TRANSFORMER_FLAGS ?= --set seed=1
MADE_HERE         := build/tiny-base
REQUEST  = "$(DATA)" --model $(MODEL) --number-of-steps $(STEPS) --rank $(RANK) --adapter-type $(ADAPTER) --name "$(NAME)" $(FLAGS)

.DEFAULT_GOAL := help
.PHONY: help setup check test test-slow test-serve test-gpu run ingest encode train plan status parity bench recordings tiny-base fields accept-stage-code clean

help: ## This list.
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Make .venv and install in it what running needs, once.

# One pip call: whatever needs torch must meet the pinned build, or the newest one with its CUDA packages is drawn in.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is none: make setup PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV): $(TORCH) and some fifty smaller packages (docs/install.md has their sizes). This is done once."
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)"; exit 1; }
	$(BIN)/pip install --disable-pip-version-check "$(TORCH)" -e ".[formats]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "Installing the tools of development: tests, linter, type checker, every optional package."
	$(BIN)/pip install --disable-pip-version-check "$(TORCH)" -e ".[dev]"
	@touch $@

check: $(VENV)/.ready-dev ## Format, lint, types. CI runs this first.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: $(VENV)/.ready-dev ## The CPU suite: minutes, no network.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow" -n 2 -q

test-slow: $(VENV)/.ready-dev ## The crash and fuzz suites at full length.
	$(BIN)/python -m pytest -m "slow" -q

# The clients are other people's programs, as they were released: nothing else here needs them.
CLIENTS := build/clients
test-serve: $(VENV)/.ready-dev ## The hosted trainer's own clients, a fuzzer and a browser against `serve`.
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[dev,conformance]"
	@mkdir -p $(CLIENTS)
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix $(CLIENTS) @fal-ai/client@1.10.1; \
	else echo "SKIPPED: the JavaScript client, as Node is missing"; fi
	SA3_TEST_SERVE=1 SA3_JS_CLIENTS=$(CURDIR)/$(CLIENTS) $(BIN)/python -m pytest -q -rs tests/serve_conformance tests/test_serve_page.py

test-gpu: $(VENV)/.ready-dev ## What needs a CUDA device.
	$(BIN)/python -m pytest -m "gpu" -q

run: $(MADE) | setup ## The whole main job: ingest, encode, train, adapter in output/; of the example also how it sounds.
	$(SA3) run $(REQUEST) --pre-encode
	$(if $(HEARD),$(HEAR))
	@printf '\nThe command is %s: type it so, or after "source %s" without the folder.\n' $(SA3) $(BIN)/activate
	@printf 'Your own clips first: %s ingest FOLDER checks them, and needs no model.\n' $(SA3)

ingest: $(MADE) | setup ## Unpack, pair captions, check, find the crop length.
	$(SA3) ingest $(REQUEST)

encode: $(MADE) | setup ## Latents and prompt embeddings; what the store holds is not encoded again.
	$(SA3) encode $(REQUEST)

train: encode ## Fit an adapter on the cached latents.
	$(SA3) train $(REQUEST)

plan: $(MADE) | setup ## What `make train` would do, and why.
	$(SA3) plan $(REQUEST) --pre-encode

status: setup ## What the store holds.
	$(SA3) status

parity: $(VENV)/.ready-dev ## Every golden case under GOLDEN_DIR (default: the compact selection), as a table.
	$(BIN)/python -m tests.parity

bench: $(VENV)/.ready-dev ## The benchmarks; each prints a table.
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

recordings: $(VENV)/.ready-dev ## Recordings from Debian packages (170 MB), for bench_reconstruction.py to judge by.
	$(BIN)/python -m tests.benchmarks.recordings

tiny-base: setup ## Train tiny-base anew on a GPU, SECONDS for each part; what would ship is then in build/tiny-base/model.
	$(BIN)/python -m stages.pretrain.autoencoder.run $(MADE_HERE) --seconds $(SECONDS) $(AUTOENCODER_FLAGS)
	$(BIN)/python -m stages.pretrain.judge $(MADE_HERE) --autoencoder $(MADE_HERE)/autoencoder.safetensors $(JUDGE_FLAGS)
	$(BIN)/python -m stages.pretrain.transformer.run $(MADE_HERE) --autoencoder $(MADE_HERE)/autoencoder.safetensors \
		--judge $(MADE_HERE)/judge.safetensors --seconds $(SECONDS) $(TRANSFORMER_FLAGS)
	$(BIN)/python -m stages.pretrain.assemble $(MADE_HERE)/autoencoder.safetensors $(MADE_HERE) $(MADE_HERE)/model

fields: setup ## Write docs/fields.md from the declarations of the fields.
	$(BIN)/python -m pipeline.request.fields_page > docs/fields.md

accept-stage-code: $(VENV)/.ready-dev ## Accept changed stage code whose results are the same (else bump the stage's version).
	$(BIN)/python -m tests.stage_code --accept

clean: ## Remove what builds and checks left behind; never adapters, trainings or anything else of the store.
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(EXAMPLE): pipeline/example_dataset.py pipeline/example_style.py | setup
	@mkdir -p $(@D)
	$(SA3) example $@ --held-out $(HELD_OUT)
