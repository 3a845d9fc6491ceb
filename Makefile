# Every target installs what it needs into .venv and reuses it while pyproject.toml is unchanged.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install demo test soak lint docs format bench gpu kernels-report clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## Create .venv and install everything (a few minutes, about 7 GB, once)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "xpt needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Set PYTHON=python3.11 or later."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "python3 has no working venv module: sudo apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV): PyTorch, DeepSpeed, DALI and the rest, about 7 GB, a few minutes, once."
	$(BIN)/pip install --disable-pip-version-check --progress-bar on -e '.[dev]'
	@touch $@

# Two ranks on a CPU; on a machine with GPUs one per GPU, two at most.
DEMO_RANKS = $(shell $(BIN)/python -c 'import torch; print(min(2, torch.cuda.device_count() or 2))')
DEMO ?= demo
# A GPU machine has its own PyTorch.
GPU_PYTHON ?= python3
DEMO_PATIENTS ?= 320
DEMO_REPORT_FLAGS ?= --train.images 800 --train.eval-images 800 --train.eval-films 8 \
	--report.section impression --report.longest 64 --report.select cider
DEMO_EVALUATE_FLAGS ?= --boxes $(DEMO)/boxes.parquet

demo: install  ## From nothing to a pretrained, fine-tuned and tested model, in about twelve minutes
	@echo; echo "1. An archive of synthetic chest films: DICOM files, reports, labels and the true outlines."
	xpt-shards phantom $(DEMO)/archive --patients $(DEMO_PATIENTS) --side 720 --seed 1
	@# The patients are synthetic: their pseudonyms need no secret, and everyone gets the same splits.
	@test -e $(DEMO)/shards.key || echo 0123456789abcdef0123456789abcdef > $(DEMO)/shards.key
	@echo; echo "2. The archive becomes shards: read, windowed, letterboxed, de-identified, split by patient." \
		"(640 pixels instead of 1280, for two CPU cores.)"
	xpt-shards build $(DEMO)/archive --meta $(DEMO)/archive/metadata.csv --contour masks:$(DEMO)/archive/masks \
		--side 640 --shard-size 16 --fractions 0.7 0.1 0.2 --out $(DEMO)/shards $(DEMO_SHARD_FLAGS)
	@echo; echo "3. Every byte, picture and count of the shards is checked."
	xpt-shards verify $(DEMO)/shards
	xpt-shards preview $(DEMO)/shards --out $(DEMO)/shards.png
	@echo; echo "4. A small masked autoencoder learns from them on $(DEMO_RANKS) ranks, with ZeRO 2."
	OMP_NUM_THREADS=1 deepspeed --log_level warning --num_gpus $(DEMO_RANKS) xpt/train.py --preset demo \
		--ds_config ds_configs/zero2.json --data.path $(DEMO)/shards --run_dir $(DEMO)/run $(DEMO_FLAGS)
	@echo; $(BIN)/python -m xpt.summary $(DEMO)/run
	@echo "  $(DEMO)/shards.png  (the films with their chest contours)"
	@echo; echo "5. What it has learned is fine-tuned to recognise findings, and tested on patients set aside."
	OMP_NUM_THREADS=1 deepspeed --log_level warning --num_gpus $(DEMO_RANKS) xpt/finetune.py --preset demo \
		--ds_config ds_configs/zero2.json --init $(DEMO)/run --data.path $(DEMO)/shards \
		--run_dir $(DEMO)/findings $(DEMO_TUNE_FLAGS)
	xpt-shards boxes $(DEMO)/shards --archive $(DEMO)/archive --table $(DEMO)/archive/truth.jsonl \
		--out $(DEMO)/boxes.parquet
	OMP_NUM_THREADS=1 xpt-evaluate $(DEMO)/findings $(DEMO_EVALUATE_FLAGS)
	@echo; echo "6. The same model learns to write reports in two languages; one of each, beside the truth." \
		"(So few films teach the wording, not yet the findings.)"
	OMP_NUM_THREADS=1 deepspeed --log_level warning --num_gpus $(DEMO_RANKS) xpt/finetune.py --preset demo \
		--task report --languages en zh --ds_config ds_configs/zero2.json --init $(DEMO)/run \
		--data.path $(DEMO)/shards --run_dir $(DEMO)/reports $(DEMO_REPORT_FLAGS)
	OMP_NUM_THREADS=1 xpt-evaluate $(DEMO)/reports $(DEMO_REPORT_EVALUATE_FLAGS)
	@echo; $(BIN)/python -m xpt.summary $(DEMO)/reports

PACKAGES = xpt kernels shards_tool

# Many tests start processes of their own or wait for them, so more workers than this are seldom faster.
TEST_WORKERS ?= 2

test: install  ## Run the tests (ARGS="-k order" narrows them)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

soak: install  ## Kill training runs 400 times, damage files 12,000 times, and compare (long)
	@$(BIN)/python -m pytest -m soak $(ARGS)

lint: install  ## ruff, pyright and shellcheck
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/shellcheck --external-sources slurm/*.sh tests/*.sh tests/slurm/*.sh .ci/run

bench: install  ## The benchmarks of the step, one thread, beside the best public code (20 minutes)
	@for name in masking loss loader step; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$name $(ARGS) || exit; done

gpu:  ## Oracles, kernels, attention and steps on this machine's GPU, in 8 minutes; needs torch, timm and triton only
	@PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.gpu --json gpu.json $(ARGS)

kernels-report: install  ## Compile every kernel for three GPUs and write docs/kernels.md
	@$(BIN)/python -m benchmarks.kernels_report

docs: install  ## The API reference, from the docstrings, into build/api
	@OMP_NUM_THREADS=1 $(BIN)/pdoc $(PACKAGES) --output-directory build/api
	@echo "build/api/index.html"

format: install  ## Let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## Remove the demo and caches; .venv and runs stay
	rm -rf demo build .pytest_cache .ruff_cache
