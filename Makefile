# The curriculum as a graph of files. `make help` explains every target; `make -n TARGET` shows what would run.

PRESET    ?= digits
TOKENIZER ?= fq_dual
GENERATOR ?= $(if $(filter representation,$(KIND)),llamagen_ideal,stage2)
EXPERIMENT ?= ssq/table3
SPLIT     ?= validation
DATA      ?=
CAPTIONS  ?=
FEATURE   ?= after/all
ARGS      ?=
LAUNCH    ?= here

VENV   := .venv
PYTHON := $(VENV)/bin/python
UV     := $(VENV)/bin/uv
READY  := $(VENV)/.ready
RUNS   := runs/$(PRESET)
# set by a job on a cluster: the launcher of the ranks, and the overlay of each recipe
LAUNCHER ?=
CLUSTER  ?=
# paths may hold spaces: quoted for the shell, escaped for make
quoted  = '$(subst ','\'',$(1))'
SPACE  := $(subst ,, )
escaped = $(subst $(SPACE),\ ,$(1))
CONFIG  = --config configs/$(1).yaml --config configs/presets/$(PRESET)/$(2).yaml $(CLUSTER)
# overlay of a preset for one recipe
OVERLAY = $(wildcard configs/presets/$(PRESET)/$(1).yaml)
# a preset states the sizes of each class of tokenizers in a file of its own
KIND   := $(if $(shell grep -s FoldedTokenizer configs/$(TOKENIZER).yaml),folded,$(if $(shell grep -s RepresentationTokenizer configs/$(TOKENIZER).yaml),representation,tokenizer))
SIZED   = $(call CONFIG,$(1),$(2)) $(addprefix --config ,$(call OVERLAY,$(1)))
CLI    := $(LAUNCHER) $(PYTHON) cli.py
FIT    := $(CLI) fit
ROOT   := $(if $(DATA),--data.init_args.source.init_args.root=$(call quoted,$(DATA)))
TOKENS := $(RUNS)/tokens/$(TOKENIZER)
# a stage is finished when it has written done.json (artifacts/completion.py)
CODES  := $(TOKENS)/done.json
STAGE1 ?= $(RUNS)/stage1/$(TOKENIZER)
TRAINED := $(RUNS)/$(GENERATOR)/$(TOKENIZER)/done.json
# a generator's recipe on the tokens of TOKENIZER; some recipes read the images again
GENERATE = $(FIT) $(call SIZED,$(1),generator) --run.stage $(1)/$(TOKENIZER) --data.init_args.store $(TOKENS) \
	$(if $(DATA),$(if $(shell grep -l OnlineTokenDataModule configs/$(1).yaml $(call OVERLAY,$(1))),$(ROOT)))
# samples of a generator other than stage 2 carry its name as well
SAMPLED := $(RUNS)/samples/$(TOKENIZER)$(if $(filter-out stage2,$(GENERATOR)),_$(GENERATOR))
SAMPLES ?= $(SAMPLED)/samples.npz
# the target of their evaluation, and what it waits for; ⎵ keeps a path together while make splits words
WHOLE    := $(subst $(SPACE),⎵,$(SAMPLES))
MEASURED := $(subst ⎵,\ ,$(if $(filter samples.npz,$(notdir $(WHOLE))),$(dir $(WHOLE))metrics.json,$(WHOLE:.npz=_metrics.json)))
DRAWN    := $(if $(filter $(SAMPLED)/samples.npz,$(WHOLE)),$(SAMPLED)/done.json,$(call escaped,$(SAMPLES)))
# class vectors of zero-shot classification: of the dual encoder of an embedded preset, or of the recipe's foundation model
FOUNDATION := $(shell sed -n 's/.*foundation: {name: \([a-z0-9_]*\).*/\1/p' configs/$(TOKENIZER).yaml 2>/dev/null)
CLASSES ?= $(if $(wildcard configs/presets/$(PRESET)/teacher_dual.yaml),$(RUNS)/teacher/classes,weights/$(or $(FOUNDATION),siglip2_large)_classes).safetensors
# a captioning probe carries the name of its feature
CAPTIONED := $(TOKENIZER)_$(subst /,_,$(FEATURE))
CFG ?= 1.0 1.5 2.0 2.5 3.0
# the next command, with the choices of this one
NEXT = next: make $(strip $(1) $(foreach name,PRESET TOKENIZER GENERATOR,$(if $(filter command environment,$(origin $(name))),$(name)=$($(name)))))$(if \
	$(DATA), DATA=$(call quoted,$(DATA)))
# ARGS apply to the targets on the command line, not to their prerequisites
ARGS_OF = $(if $(filter $(1),$(MAKECMDGOALS)),$(ARGS))

# a slip in a name, and a generator that cannot be conditioned, are refused before anything is trained
$(foreach name,TOKENIZER GENERATOR,$(if $(filter command environment,$(origin $(name))),$(if $(wildcard configs/$($(name)).yaml),,\
	$(error $(name) is $($(name)), and there is no configs/$($(name)).yaml: make help lists all names))))
ifneq ($(filter condition,$(MAKECMDGOALS)),)
$(if $(shell grep -s NextScaleGenerator configs/$(GENERATOR).yaml),,\
	$(error GENERATOR is $(GENERATOR), and references condition a next-scale one: make condition GENERATOR=next_scale TOKENIZER=imagefolder))
endif

# so is a generator that cannot learn the tokens, which its program would refuse after their tokenizer was trained; ARGS may make it fit
says  = $(shell grep -sE '^[^\#]*($(2))' configs/$(1).yaml)
lacks = $(if $(call says,$(1),$(2)),,$(1))
LEARNERS := $(or $(filter stage1 stage2,$(MAKECMDGOALS)),$(if $(filter demo curriculum generator sample condition sweep layers,$(MAKECMDGOALS)),$(GENERATOR)))
$(foreach learner,$(if $(ARGS),,$(LEARNERS)),\
	$(if $(and $(call says,$(TOKENIZER),ContinuousBottleneck),$(call lacks,$(learner),DiffusionTransformer)),\
		$(error GENERATOR $(learner) learns codes, and TOKENIZER $(TOKENIZER) has none: take GENERATOR=dit, or a tokenizer with codes))\
	$(if $(and $(call says,$(learner),NextScaleGenerator),$(call lacks,$(TOKENIZER),MultiScaleQuantizer)),\
		$(error GENERATOR $(learner) predicts a scale from those before, and TOKENIZER $(TOKENIZER) has one: take TOKENIZER=var or imagefolder))\
	$(if $(and $(call says,$(learner),generators.LinearHead),$(call lacks,$(learner),sub_codes:),$(call says,$(TOKENIZER),(num_branches|num_sub_codes): [2-9])),\
		$(error GENERATOR $(learner) predicts one code a position, and TOKENIZER $(TOKENIZER) has several: take GENERATOR=far_base, or TOKENIZER=vq)))

.DEFAULT_GOAL := help
.PHONY: status help setup lock demo curriculum teacher tokenizer tokens tokens-check stage1 stage2 generator sample condition evaluate sweep layers dependency report probe zero-shot caption analysis pictures plot weights reference experiment consolidate test test-cluster drill soak fuzz lint format benchmark tensorboard clean

help: ## Explain every target
	@echo "make TARGET [PRESET=digits|photos|imagenet] [TOKENIZER=$$(grep -l 'stage: tokenizer/' configs/*.yaml | sed 's|.*/||; s|\.yaml||' | paste -sd '|')]"
	@echo "            [GENERATOR=$$(grep -l 'lightning_modules.GeneratorModule' configs/*.yaml | sed 's|.*/||; s|\.yaml||' | paste -sd '|')] [DATA=/path] [ARGS='--key value']"
	@echo "            [LAUNCH=slurm NODES=2 GPUS=8 PARTITION=name TIME=24:00:00]"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

# --- environment -----------------------------------------------------------------------------------------------------

setup: $(READY) ## Build .venv from requirements.lock; nothing to do when it is up to date

$(READY): requirements.lock
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Polytoken needs Python 3.11 or newer; python3 is $$(python3 --version)"; exit 1; }
	test -x $(UV) || { python3 -m venv $(VENV) && $(PYTHON) -m pip install --quiet "uv==$$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements.lock)"; }
	$(UV) pip sync --quiet --compile-bytecode --python $(PYTHON) --require-hashes requirements.lock # every program starts seconds sooner
	@touch $@

lock: $(READY) ## Renew requirements.lock from pyproject.toml
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11 --extra suite --extra caption --extra dev pyproject.toml -o requirements.lock

# --- curriculum ------------------------------------------------------------------------------------------------------

ifeq ($(LAUNCH),slurm)
include scripts/slurm.mk
else

demo: report ## Teachers, tokenizer, tokens, both stages, 500 samples, their evaluation, a report: no network, no GPU

curriculum: report ## The same stages; with LAUNCH=slurm, a job each, one after the other

ifeq ($(wildcard configs/presets/$(PRESET)/judge.yaml),)
TEACHERS_HERE :=
teacher: ## Train the judge and the stand-ins for CLIP, DINOv2 and SigLIP 2 of an embedded preset (digits, photos)
	@echo "the preset $(PRESET) trains no teachers: it uses published networks (make weights)"
else
TEACHERS_HERE := $(addprefix $(RUNS)/teacher/,judge/done.json mid/done.json high/done.json)
# the dual encoder, which the recipes that name it need in addition
DUAL := $(RUNS)/teacher/dual/done.json
teacher: $(TEACHERS_HERE) $(DUAL) ## Train the judge and the stand-ins for CLIP, DINOv2 and SigLIP 2 of an embedded preset (digits, photos)

$(RUNS)/teacher/judge/done.json: configs/judge.yaml configs/presets/$(PRESET)/judge.yaml | $(READY)
	$(FIT) $(call CONFIG,judge,judge)
	@$(PYTHON) -m commands.summary $(@D)
	@echo "the judge is $(RUNS)/teacher/judge.safetensors"

$(RUNS)/teacher/%/done.json: configs/teacher_%.yaml configs/presets/$(PRESET)/teacher_%.yaml | $(READY)
	$(FIT) $(call CONFIG,teacher_$*,teacher_$*)
	@$(PYTHON) -m commands.summary $(@D)
	@echo "the teacher is $(RUNS)/teacher/$*.safetensors"

$(RUNS)/teacher/classes.safetensors: $(DUAL) | $(READY)
	$(PYTHON) -m commands.class_vectors --text $(RUNS)/teacher/text.safetensors
endif

weights/%_classes.safetensors: | $(READY)
	$(PYTHON) -m commands.class_vectors --text $* # once, with a network: the text tower is large

tokenizer: $(RUNS)/tokenizer/$(TOKENIZER)/done.json ## Train TOKENIZER on PRESET, or resume its training

NAMES_DUAL := $(shell grep -ls teacher/dual configs/$(TOKENIZER).yaml configs/presets/$(PRESET)/$(KIND).yaml $(call OVERLAY,$(TOKENIZER)))
$(RUNS)/tokenizer/$(TOKENIZER)/done.json: $(TEACHERS_HERE) $(if $(NAMES_DUAL),$(DUAL)) configs/$(TOKENIZER).yaml configs/presets/$(PRESET)/$(KIND).yaml $(call OVERLAY,$(TOKENIZER)) | $(READY)
	$(FIT) $(call SIZED,$(TOKENIZER),$(KIND)) $(ROOT) $(call ARGS_OF,tokenizer)
	@$(PYTHON) -m commands.summary $(@D)
	@echo "the tokenizer is in $(@D) (config.yaml, checkpoints/, metrics.json, pictures); $(call NEXT,tokens)"

tokens: $(CODES) ## Write the codes of all images, by TOKENIZER; the latents, if it has no codes

$(CODES): $(RUNS)/tokenizer/$(TOKENIZER)/done.json configs/tokens.yaml configs/presets/$(PRESET)/tokens.yaml $(call OVERLAY,tokens_$(TOKENIZER)) | $(READY)
	$(CLI) predict $(call CONFIG,tokens,tokens) $(addprefix --config ,$(call OVERLAY,tokens_$(TOKENIZER))) --model.init_args.tokenizer_run $(RUNS)/tokenizer/$(TOKENIZER) --run.stage tokens/$(TOKENIZER) $(ROOT) $(call ARGS_OF,tokens)
	@echo "the tokens are in $(TOKENS) (train/, validation/); $(call NEXT,$(if $(filter stage2,$(GENERATOR)),stage1,generator))"

tokens-check: $(CODES) ## Decode a few of the stored tokens next to their images, and verify all checksums
	$(PYTHON) -m commands.tokens_check $(TOKENS) $(call ARGS_OF,tokens-check)

stage1: $(RUNS)/stage1/$(TOKENIZER)/done.json ## Train a generator on one code a patch: global structure

$(RUNS)/stage1/$(TOKENIZER)/done.json: $(CODES) configs/stage1.yaml configs/presets/$(PRESET)/generator.yaml $(call OVERLAY,stage1) | $(READY)
	$(call GENERATE,stage1) $(call ARGS_OF,stage1)
	@$(PYTHON) -m commands.summary $(@D)
	@echo "stage 1 is in $(@D) (config.yaml, checkpoints/, metrics.json, lineage.json); $(call NEXT,stage2)"

stage2: $(RUNS)/stage2/$(TOKENIZER)/done.json ## Train it on all codes, starting from the run STAGE1: local dependencies

$(RUNS)/stage2/$(TOKENIZER)/done.json: $(CODES) $(call escaped,$(STAGE1))/done.json configs/stage2.yaml configs/presets/$(PRESET)/generator.yaml $(call OVERLAY,stage2) | $(READY)
	$(call GENERATE,stage2) --model.init_args.init_from $(call quoted,$(STAGE1)) $(call ARGS_OF,stage2)
	@$(PYTHON) -m commands.summary $(@D)
	@echo "stage 2 is in $(@D) (config.yaml, checkpoints/, metrics.json, lineage.json); $(call NEXT,sample)"

generator: $(TRAINED) ## Train GENERATOR, by default stage 2, on the stored tokens

ifeq ($(filter stage1 stage2,$(GENERATOR)),)
$(TRAINED): $(CODES) configs/$(GENERATOR).yaml configs/presets/$(PRESET)/generator.yaml $(call OVERLAY,$(GENERATOR)) | $(READY)
	$(call GENERATE,$(GENERATOR)) $(call ARGS_OF,generator)
	@$(PYTHON) -m commands.summary $(@D)
	@echo "$(GENERATOR) is in $(@D); $(call NEXT,sample)"
endif

sample: $(SAMPLED)/done.json ## Generate images with GENERATOR: samples.npz and grid.png

$(SAMPLED)/done.json: $(TRAINED) configs/sample.yaml configs/presets/$(PRESET)/sample.yaml $(call OVERLAY,sample_$(GENERATOR)) | $(READY)
	$(CLI) predict $(call CONFIG,sample,sample) $(addprefix --config ,$(call OVERLAY,sample_$(GENERATOR))) --model.init_args.generator_run $(RUNS)/$(GENERATOR)/$(TOKENIZER) --run.stage samples/$(notdir $(SAMPLED)) $(call ARGS_OF,sample)
	@echo "the samples are in $(@D) (samples.npz, grid.png); $(call NEXT,evaluate)"

condition: $(TRAINED) | $(READY) ## Generate images around references (GENERATOR=next_scale): grid.png, samples.npz
	$(CLI) predict $(call CONFIG,condition,condition) --model.init_args.generator_run $(RUNS)/$(GENERATOR)/$(TOKENIZER) --run.stage samples/$(notdir $(SAMPLED))_condition $(ROOT) $(ARGS)

evaluate: $(MEASURED) ## Measure SAMPLES=any.npz, real images and reconstructions

# ARGS may name another reference or network than that of the existing metrics
.PHONY: measure-again
$(MEASURED): $(DRAWN) $(TEACHERS_HERE) $(if $(call ARGS_OF,evaluate),measure-again) | $(READY)
	$(PYTHON) -m commands.evaluate --samples $(call quoted,$(SAMPLES)) --preset $(PRESET) $(call ARGS_OF,evaluate)
	@echo "the metrics are in $@; $(call NEXT,report)"

sweep: $(TRAINED) $(TEACHERS_HERE) ## Measure GENERATOR at each guidance of CFG="1.0 1.5 2.0": sweep.json, sweep.png
	$(PYTHON) -m commands.sweep --run $(RUNS)/$(GENERATOR)/$(TOKENIZER) --guidance $(CFG) --preset $(PRESET) $(ARGS)

dependency: $(CODES) ## Measure how far the stored codes of TOKENIZER depend on each other: dependency.json, dependency.png
	$(PYTHON) -m commands.dependency --store $(TOKENS) $(ARGS)

layers: $(TRAINED) $(TEACHERS_HERE) ## Compare the blocks of GENERATOR with its output and a teacher: layers.json, layers.png
	$(PYTHON) -m commands.layers --run $(RUNS)/$(GENERATOR)/$(TOKENIZER) $(ARGS)

# what the features of a representation autoencoder still know, for the report; elsewhere it takes hours: make probe zero-shot
UNDERSTOOD := $(if $(and $(filter representation,$(KIND)),$(TEACHERS_HERE)),$(addprefix $(RUNS)/tokenizer/$(TOKENIZER)/,probes.json zero_shot.json))

report: $(RUNS)/report.html ## Put all runs and tables of PRESET on one page: report.html, and report.md

$(RUNS)/report.html: $(MEASURED) $(UNDERSTOOD) $(wildcard runs/experiments/results/*/*_$(PRESET).json) | $(READY)
	$(PYTHON) -m commands.report --preset $(PRESET)
	@echo "the report is $@; that is the whole curriculum"

$(RUNS)/tokenizer/$(TOKENIZER)/probes.json: $(RUNS)/tokenizer/$(TOKENIZER)/done.json
	$(PYTHON) -m commands.probe --run $(@D)

$(RUNS)/tokenizer/$(TOKENIZER)/zero_shot.json: $(RUNS)/tokenizer/$(TOKENIZER)/done.json $(call escaped,$(CLASSES))
	$(PYTHON) -m commands.zero_shot --run $(@D) --classes $(call quoted,$(CLASSES))

probe: $(RUNS)/tokenizer/$(TOKENIZER)/done.json ## Probe the features of TOKENIZER for the class: probes.json
	$(PYTHON) -m commands.probe --run $(RUNS)/tokenizer/$(TOKENIZER) $(ARGS)

zero-shot: $(RUNS)/tokenizer/$(TOKENIZER)/done.json $(call escaped,$(CLASSES)) ## Classify images by decoded features of TOKENIZER=ideal and names of classes: zero_shot.json
	$(PYTHON) -m commands.zero_shot --run $(RUNS)/tokenizer/$(TOKENIZER) --classes $(call quoted,$(CLASSES)) $(ARGS)

caption: $(RUNS)/caption_stage2/$(CAPTIONED)/done.json ## Caption images from FEATURE of TOKENIZER, in two stages: captions.json

# stage 1 trains a projector to a language model, stage 2 both
CAPTION = $(FIT) $(call SIZED,$(1),caption) --run.stage $(1)/$(CAPTIONED) --model.init_args.feature $(FEATURE) \
	--model.init_args.tokenizer_run $(RUNS)/tokenizer/$(TOKENIZER) $(if $(CAPTIONS),--data.init_args.source.init_args.root=$(call quoted,$(CAPTIONS)))

$(RUNS)/caption_stage1/$(CAPTIONED)/done.json: $(RUNS)/tokenizer/$(TOKENIZER)/done.json configs/caption_stage1.yaml configs/presets/$(PRESET)/caption.yaml $(call OVERLAY,caption_stage1) | $(READY)
	$(call CAPTION,caption_stage1)

$(RUNS)/caption_stage2/$(CAPTIONED)/done.json: $(RUNS)/caption_stage1/$(CAPTIONED)/done.json configs/caption_stage2.yaml $(call OVERLAY,caption_stage2) | $(READY)
	$(call CAPTION,caption_stage2) --model.init_args.init_from $(RUNS)/caption_stage1/$(CAPTIONED) $(call ARGS_OF,caption)
	@echo "BLEU and CIDEr-D are in $(@D)/metrics.json, the captions in captions.json"

analysis: tokenizer ## Analyse the subspaces of TOKENIZER: affinity, ablation, code maps
	$(PYTHON) cli.py validate $(call SIZED,$(TOKENIZER),$(KIND)) --config configs/analysis.yaml --config configs/presets/$(PRESET)/analysis.yaml $(ROOT) $(ARGS)

endif

pictures: analysis sample ## Copy the pictures of the runs and of the analysis into docs/images
	for name in affinity subspaces code_map usage; do cp $(RUNS)/tokenizer/$(TOKENIZER)/$$name.png docs/images/$(PRESET)_$$name.png; done
	cp $(RUNS)/tokenizer/$(TOKENIZER)/reconstructions.png docs/images/$(PRESET).png
	cp $(RUNS)/tokenizer/$(TOKENIZER)/components.png docs/images/$(PRESET)_components.png
	cp $(SAMPLED)/grid.png docs/images/$(PRESET)_samples.png

plot: $(READY) ## Plot iFSQ Fig. 3 from its finished experiment into docs/images
	$(PYTHON) -m experiments show ifsq/fig3 --preset photos
	$(PYTHON) -m experiments.ifsq_plot runs/experiments/results/ifsq/fig3_photos.json docs/images/ifsq_fig3.png

weights: $(READY) ## Fetch VGG-16 (LPIPS), Inception, ADM's reference (2 GB), and TEACHERS="clip_large_14 …" into weights/
	$(PYTHON) -m commands.weights $(TEACHERS)

reference: $(TEACHERS_HERE) | $(READY) ## Measure the real images of SPLIT=validation (for rFID) or train (for gFID)
	$(PYTHON) -m commands.reference --preset $(PRESET) --split $(SPLIT) $(if $(DATA),--data $(call quoted,$(DATA))) $(ARGS)

consolidate: | $(READY) ## Make one file (whole.ckpt) of the sharded checkpoint of RUN=runs/…, by default GENERATOR's
	$(PYTHON) -m commands.consolidate $(call quoted,$(or $(RUN),$(RUNS)/$(GENERATOR)/$(TOKENIZER)))

experiment: $(TEACHERS_HERE) $(if $(filter ideal/%,$(EXPERIMENT)),$(DUAL) $(if $(shell grep -s zero_shot experiments/$(EXPERIMENT).yaml),$(call escaped,$(CLASSES)))) | $(READY) ## Run EXPERIMENT (ssq/table3, ifsq/fig3 …) on PRESET; ARGS='--seeds 3'
	$(PYTHON) -m experiments run $(EXPERIMENT) --preset $(PRESET) $(ARGS)

# one stage as a job: experiments --sbatch submits it (LAUNCHER and CLUSTER reach it as variables of the environment)
.PHONY: experiment-stage
experiment-stage: | $(READY)
	$(PYTHON) -m experiments.start $(call quoted,$(RUN))

# --- development -----------------------------------------------------------------------------------------------------

# these ARGS are pytest's; a make that a test runs must not inherit them
PYTEST := OMP_NUM_THREADS=1 env -u ARGS -u MAKEFLAGS -u MAKELEVEL $(PYTHON) -m pytest

test: $(READY) ## Run all tests of a single process, two at a time with a thread each
	$(PYTEST) --numprocesses 2 --dist worksteal $(ARGS)

test-cluster: $(READY) ## Run the tests of several processes, and jobs of a real SLURM (as root; else skipped with the reason)
	$(PYTEST) -m cluster --numprocesses 2 --dist loadfile -rs $(ARGS)

drill: $(READY) ## Kill the make of a curriculum on digits 20 times: it ends like an undisturbed one; ARGS='--curriculum ideal --kills 50'
	$(PYTHON) -m tests.drill $(ARGS)

soak: $(READY) ## Train a tokenizer and a generator for 20,000 tiny steps each: memory, files, threads and time do not grow
	$(PYTHON) -m tests.soak $(ARGS)

fuzz: $(READY) ## Give 2,000 mutated files to the programs that read them; ARGS='--seed 1 --mutations 500'
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.fuzz $(ARGS)

lint: $(READY) ## Check style, types and imports
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(READY) ## Format the code
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

benchmark: $(READY) ## Measure the f16 dual tokenizer, and generators in training and sampling; writes benchmarks/results
	$(PYTHON) -m benchmarks.tokenizer
	$(PYTHON) -m benchmarks.generator

tensorboard: $(READY) ## Watch all runs: Custom Scalars groups reconstruct, codes, generate; HParams lists settings
	$(VENV)/bin/tensorboard --logdir runs --port $(or $(PORT),6006) --host $(or $(HOST),localhost)

clean: ## Delete the runs of PRESET, after a question; YES=1 answers it
	@test -d $(RUNS) || { echo "there is no $(RUNS)"; exit 1; }
	@test -n "$(YES)" || { printf 'delete %s (%s)? [y/N] ' $(RUNS) "$$(du -sh $(RUNS) | cut -f 1)"; read -r answer; test "$$answer" = y; } || { echo "nothing was deleted"; exit 1; }
	rm -rf $(RUNS)

status: | $(READY) ## List the stages of PRESET: finished, unfinished with its step, not begun
	@$(PYTHON) -m commands.status --preset $(PRESET) --tokenizer $(TOKENIZER) --generator $(GENERATOR)
