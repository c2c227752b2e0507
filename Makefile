# edm3d: `make help` lists the targets. Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
STAMP := $(VENV)/.installed
# Found before .venv/bin goes first on PATH: the interpreter that makes .venv is never the one inside it.
BASE_PYTHON := $(shell command -v $(PYTHON))
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help venv demo semantic-demo pet-demo cardiac-demo private-demo test test-slow attack bench lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv with the pinned requirements (PYTHON=python3.12 picks another interpreter, 3.11 or newer)

$(STAMP): requirements.txt constraints.txt
	@test -n "$(BASE_PYTHON)" || { echo "make: no interpreter '$(PYTHON)' found; set PYTHON=/path/to/python3.11 or newer" >&2; exit 1; }
	@"$(BASE_PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "make: $(PYTHON) is Python %d.%d, edm3d needs 3.11 or newer; set PYTHON=" % v)'
	@echo "Making $(VENV) and installing the pinned requirements, about a minute (one dot per package):"
	@"$(BASE_PYTHON)" -m venv $(VENV)
	@set -o pipefail; $(VENV)/bin/python -m pip install --no-input --disable-pip-version-check -r requirements.txt -c constraints.txt | awk '\
		/^(Collecting|Requirement already satisfied)/ { printf "."; fflush() } \
		/^Installing collected/ { printf "\nunpacking ..."; fflush() } \
		END { print "" }'
	@touch $@

demo: $(STAMP)  ## the seven commands of the README: phantoms, autoencoder, latents, diffusion, refiner, samples, report
	python dataset_tool.py phantom --dest data/echo.h5 --num 640 --size 32 --seed 0
	torchrun --standalone --nproc_per_node=1 train.py -cn=echo_vae training.options.resume=latest
	python dataset_tool.py encode --autoencoder echo_vae --source data/echo.h5 --dest data/echo_latents.h5
	torchrun --standalone --nproc_per_node=1 train.py -cn=echo_edm training.options.resume=latest
	torchrun --standalone --nproc_per_node=1 train.py -cn=echo_refine training.options.resume=latest
	torchrun --standalone --nproc_per_node=1 generate.py -cn=echo_refine sampling.seeds=0-63 sampling.outdir=results/demo
	python evaluate.py --real data/echo.h5 --generated results/demo/samples.h5 --dest results/demo
	@echo "Done: samples in results/demo/samples.h5, NIfTI in results/demo/nifti, picture results/demo/samples.png, report results/demo/report.html"

SEGMENTER := torchrun --standalone --nproc_per_node=1 train.py -cn=echo3d_segmentation dataset=mixed training.options.resume=latest

semantic-demo: $(STAMP)  ## volumes drawn to label maps, and what they are worth to segmenters (docs/downstream.md)
	python dataset_tool.py phantom --dest data/echo.h5 --num 640 --size 32 --seed 0
	python dataset_tool.py phantom --dest data/echo_maps.h5 --num 256 --size 32 --seed 1 --split 1 0 0
	torchrun --standalone --nproc_per_node=1 train.py -cn=echo_vae training.options.resume=latest
	python dataset_tool.py encode --autoencoder echo_vae --source data/echo.h5 --dest data/echo_latents.h5
	torchrun --standalone --nproc_per_node=1 train.py -cn=echo3d_semantic_edm training.options.resume=latest
	torchrun --standalone --nproc_per_node=1 generate.py -cn=echo3d_semantic_edm sampling.seeds=0-255 sampling.conditions=data/echo_maps.h5 sampling.outdir=results/semantic_demo
	$(SEGMENTER) training.options.desc=real training.dataset.path=data/echo.h5 training.dataset.num=230
	$(SEGMENTER) training.options.desc=drawn training.dataset.path=results/semantic_demo/samples.h5 training.dataset.num=230
	$(SEGMENTER) training.options.desc=both training.dataset.path=[data/echo.h5,results/semantic_demo/samples.h5] training.dataset.num=230
	python evaluate.py downstream --real data/echo.h5 --runs echo3d_segmentation-real echo3d_segmentation-drawn echo3d_segmentation-both --dest results/semantic_demo
	@echo "Done: volumes drawn to maps in results/semantic_demo/samples.h5, picture samples.png, report report.html beside it"

PET := torchrun --standalone --nproc_per_node=1 train.py -cn=pet_phantoms training.options.desc=demo training.dataset.path=data/pet_demo.npz training.batch_transform.simulation.size=40 training.batch_transform.simulation.pixel_mm=6.4 training.batch_transform.simulation.counts=4e5 training.batch_transform.scale.factor=0.9 training.options.total_kimg=7

pet-demo: $(STAMP)  ## PET scans simulated at two doses, the high one drawn from the low one (docs/pet.md)
	python dataset_tool.py pet-phantom --dest data/pet_demo.npz --size 40
	$(PET) training.options.resume=latest
	torchrun --standalone --nproc_per_node=1 generate.py -cn=pet_phantoms sampling.network=pet_phantoms-demo sampling.seeds=0-15 sampling.samples_per_condition=8 sampling.antithetic=true sampling.outdir=results/pet_demo
	python evaluate.py enhancement --samples results/pet_demo/samples.h5 --dest results/pet_demo
	@echo "Done: draws in results/pet_demo/samples.h5, mean and deviation in enhanced.npz, picture samples.png, report report.html beside it"

CLASSIFIER := torchrun --standalone --nproc_per_node=1 train.py -cn=cardiac_classifier training.options.desc=demo training.options.total_kimg=4 training.options.batch_size=16 training.options.kimg_per_tick=0.5 training.options.lr_rampup_kimg=0.1 training.options.ema_halflife_kimg=0.2 training.optimizer.lr=1e-3

cardiac-demo: $(STAMP)  ## short-axis stacks drawn by attributes, both phases of each heart, judged (docs/cardiac.md)
	python dataset_tool.py phantom --kind cardiac --dest data/cardiac.h5 --num 1000 --size 13 32 32 --missing 0.1
	python dataset_tool.py phantom --kind cardiac --dest data/cardiac_asked.h5 --num 64 --size 13 32 32 --seed 1 --split 1 0 0
	torchrun --standalone --nproc_per_node=1 train.py -cn=cardiac_demo_kl4x training.options.resume=latest
	python dataset_tool.py encode --autoencoder cardiac_demo_kl4x --source data/cardiac.h5 --dest data/cardiac_latents.h5
	torchrun --standalone --nproc_per_node=1 train.py -cn=cardiac_demo_ldm training.options.resume=latest
	$(CLASSIFIER) training.options.resume=latest
	torchrun --standalone --nproc_per_node=1 generate.py -cn=cardiac_demo_ldm sampling.seeds=0-63 sampling.pairs=true sampling.conditions=data/cardiac_asked.h5
	python evaluate.py --real data/cardiac.h5 --generated results/cardiac_demo/samples.h5 --classifier cardiac_classifier-demo --dest results/cardiac_demo
	@echo "Done: pairs of phases in results/cardiac_demo/samples.h5 and nifti/, picture samples.png, report report.html beside it"

PRIVATE_STACKS := data/private_demo_private.h5
PRIVATE_LDM := python train.py -cn=private_demo_ldm training.options.resume=latest

private-demo: $(STAMP)  ## diffusion on public stacks, tuned on private ones within epsilon 10, audited (docs/privacy.md)
	python dataset_tool.py phantom --kind cardiac --dest data/private_demo_public.h5 --num 1200 --size 13 24 24
	python dataset_tool.py phantom --kind cardiac --style private --seed 100 --dest $(PRIVATE_STACKS) --num 1600 --size 13 24 24 --split 0.8 0 0.2
	python train.py -cn=private_demo_kl4x training.options.resume=latest
	python dataset_tool.py encode --autoencoder private_demo_kl4x --source data/private_demo_public.h5 --dest data/private_demo_public_latents.h5
	python dataset_tool.py encode --autoencoder private_demo_kl4x --source $(PRIVATE_STACKS) --dest data/private_demo_latents.h5
	$(PRIVATE_LDM) training.options.desc=public
	$(PRIVATE_LDM) training.options.desc=eps10 privacy=eps10 training.options.init_from=private_demo_ldm-public training.dataset.path=data/private_demo_latents.h5 training.options.batch_size=128 training.options.batch_gpu=32 training.options.total_kimg=5.12 training.options.lr_rampup_kimg=0.5 training.options.ema_halflife_kimg=0.5 training.optimizer.lr=1e-3
	python generate.py -cn=private_demo_ldm sampling.network=private_demo_ldm-eps10 sampling.seeds=0-255
	python evaluate.py --real $(PRIVATE_STACKS) --generated results/private_demo/samples.h5 --train $(PRIVATE_STACKS) --private --dest results/private_demo
	@echo "Done: samples in results/private_demo/samples.h5, picture samples.png, report report.html beside it with the statement"

lint: $(STAMP)  ## ruff
	ruff check .

test: lint  ## lint and the whole CPU test suite
	python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## the tests marked slow
	python -m pytest -q -m 'slow and not gpu'

attack: $(STAMP)  ## damaged and hostile files, races and kills against every command
	python -m benchmarks.attack

bench: export OMP_NUM_THREADS := 1
bench: $(STAMP)  ## short forms of the benchmarks of training, sampling and reading data, one JSON line each (minutes)
	python -m benchmarks.startup
	python -m benchmarks.train_step --channels 32 32 64 --sizes 8,8,8 --batches 2 --repeats 5 --precision fp32
	python -m benchmarks.autoencoder_step --settings tiny --repeats 5 --precision fp32
	python -m benchmarks.scaling --sizes 8 16 --batches 1 2 --overrides training.network.model.model_channels=16
	python -m benchmarks.quality --minutes 0.05 --seeds 0 --rates 1e-3 2e-3 --samples 16
	python -m benchmarks.quality_calls --calls 8
	python -m benchmarks.sample --latents 2 --batch 2 --ddpm-steps 5
	python -m benchmarks.load_data --num 16 --size 32

clean:  ## remove .venv and caches; data/ and results/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
