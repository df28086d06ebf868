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
# these count on the command line only: as variables of the environment their names are too common
given   = $(if $(findstring command,$(origin $(1))),$($(1)))
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
ROOT   := $(if $(DATA),--data.source.root=$(call quoted,$(DATA)))
# the name of the runs: that of the tokenizer's recipe, with STEPS another one, or RUN (a path, for three targets)
VARIANT := $(if $(filter consolidate profile experiment-stage,$(MAKECMDGOALS)),,$(call given,RUN))
RUN_NAME := $(or $(VARIANT),$(TOKENIZER)$(addsuffix _steps,$(addprefix _,$(call given,STEPS))))
# RUN is a branch: a stage has this name if its goal is on the command line, if it was made before, or if the stage before has it
at      = $(if $(or $(filter $(2),$(MAKECMDGOALS)),$(wildcard $(RUNS)/$(1)/.),$(filter $(RUN_NAME),$(3))),$(RUN_NAME),$(TOKENIZER))
TOKENIZER_RUN := $(if $(VARIANT),$(call at,tokenizer/$(RUN_NAME),tokenizer demo curriculum),$(RUN_NAME))
TOKENS_RUN := $(call at,tokens/$(RUN_NAME),tokens,$(TOKENIZER_RUN))
STAGE1_RUN := $(call at,stage1/$(RUN_NAME),stage1,$(TOKENS_RUN))
STAGE2_RUN := $(call at,stage2/$(RUN_NAME),stage2 $(if $(filter stage2,$(GENERATOR)),generator),$(STAGE1_RUN))
GENERATOR_RUN := $(or $(if $(filter stage1,$(GENERATOR)),$(STAGE1_RUN)),$(if $(filter stage2,$(GENERATOR)),$(STAGE2_RUN)),$(call at,$(GENERATOR)/$(RUN_NAME),generator,$(TOKENS_RUN)))
# samples of a generator other than stage 2 carry its name as well
SUFFIX := $(if $(filter-out stage2,$(GENERATOR)),_$(GENERATOR))
SAMPLES_RUN := $(call at,samples/$(RUN_NAME)$(SUFFIX),sample,$(GENERATOR_RUN))
TOKENS := $(RUNS)/tokens/$(TOKENS_RUN)
# a stage is finished when it has written done.json (artifacts/completion.py)
CODES  := $(TOKENS)/done.json
STAGE1 ?= $(RUNS)/stage1/$(STAGE1_RUN)
TRAINED := $(RUNS)/$(GENERATOR)/$(GENERATOR_RUN)/done.json
# STEPS of the runs of this name
quick   = $(if $(filter $(RUN_NAME),$(1)),$(addprefix --trainer.max_steps ,$(call given,STEPS)))
# DEVICES and NODES; a job has those of its allocation. The networks of a tokenizer take turns, which DDP has to know
SEVERAL_HERE := $(filter-out 1,$(call given,DEVICES) $(call given,NODES))
placed  = $(if $(LAUNCHER),,$(addprefix --trainer.devices ,$(call given,DEVICES)) $(addprefix --trainer.num_nodes ,$(call given,NODES)) $(if \
	$(SEVERAL_HERE),$(addprefix --trainer.strategy ,$(1)),$(if $(call given,DEVICES),--trainer.strategy auto)))
# The arguments of each stage, for `cli.py` and for `make check`. The recipe names the run, unless it has another name
ENCODER = $(call SIZED,$(TOKENIZER),$(KIND)) $(if $(filter-out $(TOKENIZER),$(TOKENIZER_RUN)),--run.stage tokenizer/$(TOKENIZER_RUN)) $(ROOT)
TOKENIZE = fit $(ENCODER) $(call quick,$(TOKENIZER_RUN)) $(call placed,ddp_find_unused_parameters_true)
STORE = predict $(call CONFIG,tokens,tokens) $(addprefix --config ,$(call OVERLAY,tokens_$(TOKENIZER))) --model.tokenizer_run $(RUNS)/tokenizer/$(TOKENIZER_RUN) \
	--run.stage tokens/$(TOKENS_RUN) $(ROOT) $(call placed,)
# a generator's recipe on the tokens of TOKENIZER; some recipes read the images again
GENERATE = fit $(call SIZED,$(1),generator) --run.stage $(1)/$(2) --data.store $(TOKENS) $(call quick,$(2)) $(call placed,) \
	$(if $(DATA),$(if $(shell grep -l OnlineTokenDataModule configs/$(1).yaml $(call OVERLAY,$(1))),$(ROOT)))
SAMPLED := $(RUNS)/samples/$(SAMPLES_RUN)$(SUFFIX)
SAMPLES ?= $(SAMPLED)/samples.npz
DRAW = predict $(call CONFIG,sample,sample) $(addprefix --config ,$(call OVERLAY,sample_$(GENERATOR))) --model.generator_run $(RUNS)/$(GENERATOR)/$(GENERATOR_RUN) \
	--run.stage samples/$(notdir $(SAMPLED)) $(call placed,)
# the target of their evaluation, and what it waits for; ⎵ keeps a path together while make splits words
SAMPLES_WORD := $(subst $(SPACE),⎵,$(SAMPLES))
MEASURED := $(subst ⎵,\ ,$(if $(filter samples.npz,$(notdir $(SAMPLES_WORD))),$(dir $(SAMPLES_WORD))metrics.json,$(SAMPLES_WORD:.npz=_metrics.json)))
SAMPLES_MADE := $(if $(filter $(SAMPLED)/samples.npz,$(SAMPLES_WORD)),$(SAMPLED)/done.json,$(call escaped,$(SAMPLES)))
# class vectors of zero-shot classification: of the dual encoder of an embedded preset, or of the recipe's foundation model
FOUNDATION := $(shell sed -n 's/.*foundation: {name: \([a-z0-9_]*\).*/\1/p' configs/$(TOKENIZER).yaml 2>/dev/null)
CLASSES ?= $(if $(wildcard configs/presets/$(PRESET)/teacher_dual.yaml),$(RUNS)/teacher/classes,weights/$(or $(FOUNDATION),siglip2_large)_classes).safetensors
# a captioning probe carries the name of its feature
CAPTIONED := $(or $(VARIANT),$(TOKENIZER_RUN))_$(subst /,_,$(FEATURE))
CFG ?= 1.0 1.5 2.0 2.5 3.0
# what `make check` composes; a curriculum on images that are not shipped begins with it
PLANNED = -- $(TOKENIZE) -- $(STORE) -- $(call GENERATE,$(GENERATOR),$(GENERATOR_RUN)) -- $(DRAW)
CHECKED := $(if $(filter digits photos,$(PRESET)),,check)
# the next command, with the choices of this one
NEXT = next: make $(strip $(1) $(foreach name,PRESET TOKENIZER GENERATOR,$(if $(filter command environment,$(origin $(name))),$(name)=$($(name)))) $(foreach \
	name,RUN STEPS DEVICES NODES,$(if $(call given,$(name)),$(name)=$(call given,$(name)))))$(if $(DATA), DATA=$(call quoted,$(DATA)))
# A stage, of the goals $(1): `commands.stage` compares a finished run with what is asked, which decides, and not the times
# of files. So a rule is always asked, except that -n lists what is missing.
ASKED_ALWAYS := $(if $(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS)))),,ask)
STAGE  = @$(PYTHON) -m commands.stage $(@D) $(if $(filter $(1),$(MAKECMDGOALS)),--named) --
# what follows a stage that has been made now
BEGUN := $(shell date +%s)
IF_MADE_NOW = @if test "$$(date -r $@ +%s 2>/dev/null || echo 0)" -ge $(BEGUN); then
# ARGS apply to the targets on the command line, not to their prerequisites
ARGS_OF = $(if $(filter $(1),$(MAKECMDGOALS)),$(ARGS))

# a variable that no target reads is a slip in its name
KNOWN := ARGS CAPTIONS CFG CHECKPOINT CLASSES CLUSTER CPUS DATA DEVICES EXPERIMENT FEATURE FILE GENERATOR GPUS HOST HUB LAUNCH LAUNCHER NAME NODES PARTITION PORT \
	PRESET RUN SAMPLES SBATCH_ARGS SPLIT STAGE1 STEPS STRATEGY TEACHERS TIME TOKENIZER YES
$(foreach name,$(filter-out $(KNOWN) CLI PYTHON READY RUNS UV VENV,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),\
	$(error $(name) is no variable of this Makefile: take one of $(KNOWN))))

# a slip in a name, and a generator that cannot be conditioned, are refused before anything is trained
CHOICES = $(shell grep -l '$(1)' configs/*.yaml | sed 's|.*/||; s|\.yaml||')
TOKENIZERS = $(call CHOICES,stage: tokenizer/)
GENERATORS = $(call CHOICES,lightning_modules.GeneratorModule)
PRESETS = $(patsubst configs/presets/%/,%,$(wildcard configs/presets/*/))
$(foreach name,TOKENIZER GENERATOR,$(if $(filter command environment,$(origin $(name))),$(if $(wildcard configs/$($(name)).yaml),,\
	$(error $(name) is $($(name)), and there is no configs/$($(name)).yaml: take one of $($(name)S)))))
$(foreach name,NAME HUB,$(if $(call given,$(name)),$(if $(filter preset,$(MAKECMDGOALS)),,$(error $(name) is read by make preset only: write the preset first))))
# ARGS without a named stage would be dropped in silence
WITHOUT_ARGS := demo curriculum report check status plot weights consolidate profile tensorboard clean lint format benchmark setup lock help
$(if $(and $(call given,ARGS),$(MAKECMDGOALS)),$(if $(filter-out $(WITHOUT_ARGS),$(MAKECMDGOALS)),,\
	$(error ARGS go to the stages on the command line, and $(MAKECMDGOALS) is none: take STEPS and DEVICES, or make tokenizer ARGS=… first)))
# clean and status know the runs of a preset that is gone as well; a pattern, a path or several words name none
PRESETS_HERE := $(sort $(PRESETS) $(if $(filter clean status,$(MAKECMDGOALS)),$(notdir $(wildcard runs/*))))
$(if $(or $(filter file,$(origin PRESET)),$(and $(filter 1,$(words $(PRESET))),$(filter $(subst %,\%,$(PRESET)),$(PRESETS_HERE)))),,\
	$(error PRESET is '$(PRESET)': take one of $(PRESETS_HERE)))
$(if $(filter here slurm,$(LAUNCH)),,$(error LAUNCH is $(LAUNCH): take here or slurm))
$(foreach name,STEPS DEVICES NODES,$(if $(shell echo '$(call given,$(name))' | grep -vE '^[0-9]*$$'),$(error $(name) is $($(name)): expected a number)))
$(if $(or $(findstring /,$(VARIANT)),$(word 2,$(VARIANT))),$(error RUN is $(VARIANT): give a variant a plain name, without / and spaces))
MEASURES := tokens-check evaluate report sweep dependency layers probe zero-shot analysis condition pictures app
$(if $(and $(VARIANT),$(filter $(MEASURES),$(MAKECMDGOALS))),$(if $(filter $(RUN_NAME),$(TOKENIZER_RUN) $(TOKENS_RUN) $(STAGE1_RUN) $(GENERATOR_RUN) $(SAMPLES_RUN)),,\
	$(error RUN is $(VARIANT), and no stage of $(RUNS) has this name yet: make tokenizer, tokens, generator or sample with it first)))
ifneq ($(filter condition,$(MAKECMDGOALS)),)
$(if $(shell grep -s NextScaleGenerator configs/$(GENERATOR).yaml),,\
	$(error GENERATOR is $(GENERATOR), and references condition a next-scale one: make condition GENERATOR=next_scale TOKENIZER=imagefolder))
endif
ifneq ($(filter experiment,$(MAKECMDGOALS)),)
$(if $(DATA),$(error DATA does not reach experiments, which read images where the preset has them: make data/$(PRESET) a link to $(DATA)))
endif
ifneq ($(filter zero-shot,$(MAKECMDGOALS)),)
$(if $(filter representation,$(KIND)),,$(error TOKENIZER is $(TOKENIZER), and zero-shot classification reads features of a foundation model: take TOKENIZER=ideal))
endif
ifneq ($(filter caption,$(MAKECMDGOALS)),)
$(if $(wildcard configs/presets/$(PRESET)/caption.yaml),,$(error PRESET is $(PRESET), whose images have no captions: take one of \
	$(patsubst configs/presets/%/caption.yaml,%,$(wildcard configs/presets/*/caption.yaml))))
FEATURES := before/% after/% $(if $(filter representation,$(KIND)),foundation/% decoded/%)
$(if $(filter $(FEATURES),$(FEATURE)),,$(error FEATURE is $(FEATURE), and TOKENIZER $(TOKENIZER) has $(strip $(subst %,NAME,$(FEATURES))), such as after/all))
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
		$(error GENERATOR $(learner) predicts one code per position, and TOKENIZER $(TOKENIZER) has several: take GENERATOR=far_base, or TOKENIZER=vq)))

.DEFAULT_GOAL := help
.PHONY: check status help setup lock docs preset demo curriculum teacher tokenizer tokens tokens-check stage1 stage2 generator sample condition evaluate sweep layers dependency report probe zero-shot caption analysis pictures plot weights reference parity app experiment consolidate profile test test-slow test-cluster drill soak fuzz lint format benchmark tensorboard clean

.PHONY: ask
ask:

help: # itself, in the first line, to fit a screen
	@echo "make TARGET [NAME=value …]     make -n TARGET shows the commands, make help explains the targets"
	@echo "    make demo TOKENIZER=ifsq GENERATOR=dit STEPS=20         a quick look at all stages"
	@echo "    make tokenizer RUN=slow ARGS='--trainer.max_steps 2000' a variant; make report RUN=slow continues with it"
	@awk -F ' ## ' 'BEGIN {count = split("start stages measure experiments cluster development", order, " ")} \
		/^[a-z0-9-]+:.* ## / {split($$1, name, ":"); cut = index($$2, " | "); section = cut ? substr($$2, 1, cut - 1) : "start"; \
			if (!seen[name[1]]++) lines[section] = lines[section] sprintf("  %-12s %s\n", name[1], cut ? substr($$2, cut + 3) : $$2)} \
		END {for (i = 1; i <= count; i++) printf "%s\n%s", toupper(order[i]), lines[order[i]]}' Makefile
	@echo "NAMES, with their defaults: PRESET=digits    $(PRESETS)"
	@echo "    TOKENIZER=fq_dual $(TOKENIZERS)"
	@echo "    GENERATOR=stage2 $(GENERATORS)"
	@echo "    DATA=/path of the images    ARGS='--key value' of the named stages    RUN=name of a variant    STEPS=20 of each stage"
	@echo "    DEVICES=1 NODES=1 for this command    LAUNCH=here, or slurm with NODES=1 GPUS=1 CPUS=8 TIME=24:00:00 PARTITION= SBATCH_ARGS="

# --- environment -----------------------------------------------------------------------------------------------------

setup: $(READY) ## start | Build .venv from requirements.lock; nothing to do when it is up to date

$(READY): requirements.lock
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Polytoken needs Python 3.11 or newer; python3 is $$(python3 --version)"; exit 1; }
	test -x $(UV) || { python3 -m venv $(VENV) && $(PYTHON) -m pip install --quiet "uv==$$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' requirements.lock)"; }
	$(UV) pip sync --quiet --compile-bytecode --python $(PYTHON) --require-hashes requirements.lock # every program starts seconds sooner
	@touch $@

lock: $(READY) ## development | Renew requirements.lock from pyproject.toml
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11 --extra suite --extra vision --extra caption --extra fidelity --extra onnx --extra docs --extra dev pyproject.toml -o requirements.lock

docs: | $(READY) ## development | Build the documentation with its reference into site/, without network
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet # without the advert of a successor
	@echo "the documentation is in site/index.html"

preset: | $(READY) ## start | Write the preset NAME for the images of DATA=/path or HUB=owner/name; ARGS='--resolution 128'
	$(PYTHON) -m commands.new_preset $(if $(call given,NAME),--name $(call quoted,$(call given,NAME))) \
		$(if $(DATA),--data $(call quoted,$(DATA))) $(if $(call given,HUB),--hub $(call quoted,$(call given,HUB))) $(ARGS)

# --- curriculum ------------------------------------------------------------------------------------------------------

check: | $(READY) ## start | Look for the data, weights, reference, disk and GPUs of a curriculum; estimate its time
	@$(PYTHON) -m commands.check --preset $(PRESET) $(if $(filter slurm,$(LAUNCH)),--in-job) $(PLANNED)

ifeq ($(LAUNCH),slurm)
include scripts/slurm.mk
else

demo: $(CHECKED) report ## start | Teachers, tokenizer, tokens, both stages, 500 samples, their evaluation, a report: no network, no GPU

curriculum: $(CHECKED) report ## start | The same stages; with LAUNCH=slurm, a job each, one after the other

# the networks that a preset trains for itself: without labels, only the stand-in for DINOv2
OWN_NETWORKS := $(basename $(notdir $(wildcard $(addprefix configs/presets/$(PRESET)/,judge.yaml teacher_perceptual.yaml teacher_mid.yaml teacher_high.yaml))))
TEACHERS_HERE := $(patsubst %,$(RUNS)/teacher/%/done.json,$(OWN_NETWORKS:teacher_%=%))
ifeq ($(TEACHERS_HERE),)
teacher: ## stages | Train stand-ins for CLIP, DINOv2, SigLIP 2 (digits, photos, own presets), VGG and Inception (digits)
	@echo "the preset $(PRESET) trains no teachers: it uses published networks (make weights)"
else
# the teachers measure and guide all runs, so that STEPS of other targets leave them alone
TAUGHT = $(if $(filter teacher,$(MAKECMDGOALS)),$(addprefix --trainer.max_steps ,$(call given,STEPS)) $(ARGS))
# the dual encoder, which the recipes that name it need in addition
DUAL := $(if $(wildcard configs/presets/$(PRESET)/teacher_dual.yaml),$(RUNS)/teacher/dual/done.json)
teacher: $(TEACHERS_HERE) $(DUAL) ## stages | Train stand-ins for CLIP, DINOv2, SigLIP 2 (digits, photos, own presets), VGG and Inception (digits)

$(RUNS)/teacher/judge/done.json: $(ASKED_ALWAYS) | configs/judge.yaml configs/presets/$(PRESET)/judge.yaml $(READY)
	$(call STAGE,teacher) $(CLI) fit $(call CONFIG,judge,judge) $(TAUGHT)
	$(IF_MADE_NOW) $(PYTHON) -m commands.summary $(@D) && echo "the judge is $(RUNS)/teacher/judge.safetensors"; fi

$(RUNS)/teacher/%/done.json: $(ASKED_ALWAYS) | configs/teacher_%.yaml configs/presets/$(PRESET)/teacher_%.yaml $(READY)
	$(call STAGE,teacher) $(CLI) fit $(call CONFIG,teacher_$*,teacher_$*) $(TAUGHT)
	$(IF_MADE_NOW) $(PYTHON) -m commands.summary $(@D) && echo "the teacher is $(RUNS)/teacher/$*.safetensors"; fi

$(RUNS)/teacher/classes.safetensors: $(DUAL) | $(READY)
	$(PYTHON) -m commands.class_vectors --text $(RUNS)/teacher/text.safetensors
endif

weights/%_classes.safetensors: | $(READY)
	$(PYTHON) -m commands.class_vectors --text $* # once, with a network: the text tower is large

tokenizer: $(RUNS)/tokenizer/$(TOKENIZER_RUN)/done.json ## stages | Train TOKENIZER on PRESET, or resume its training

NAMES_DUAL := $(shell grep -ls teacher/dual configs/$(TOKENIZER).yaml configs/presets/$(PRESET)/$(KIND).yaml $(call OVERLAY,$(TOKENIZER)))
$(RUNS)/tokenizer/$(TOKENIZER_RUN)/done.json: $(TEACHERS_HERE) $(if $(NAMES_DUAL),$(DUAL)) $(ASKED_ALWAYS) | configs/$(TOKENIZER).yaml configs/presets/$(PRESET)/$(KIND).yaml $(call OVERLAY,$(TOKENIZER)) $(READY)
	$(call STAGE,tokenizer) $(CLI) $(TOKENIZE) $(call ARGS_OF,tokenizer)
	$(IF_MADE_NOW) $(PYTHON) -m commands.summary $(@D) && echo "the tokenizer is in $(@D) (config.yaml, checkpoints/, metrics.json, pictures); $(call NEXT,tokens)"; fi

tokens: $(CODES) ## stages | Write the codes of all images, by TOKENIZER; the latents, if it has no codes

$(CODES): $(RUNS)/tokenizer/$(TOKENIZER_RUN)/done.json $(ASKED_ALWAYS) | configs/tokens.yaml configs/presets/$(PRESET)/tokens.yaml $(call OVERLAY,tokens_$(TOKENIZER)) $(READY)
	$(call STAGE,tokens) $(CLI) $(STORE) $(call ARGS_OF,tokens)
	$(IF_MADE_NOW) echo "the tokens are in $(TOKENS) (train/, validation/); $(call NEXT,$(if $(filter stage2,$(GENERATOR)),stage1,generator))"; fi

tokens-check: $(CODES) ## measure | Decode a few of the stored tokens next to their images, and verify all checksums
	$(PYTHON) -m commands.tokens_check $(TOKENS) $(call ARGS_OF,tokens-check)

stage1: $(RUNS)/stage1/$(STAGE1_RUN)/done.json ## stages | Train a generator on one code per patch: global structure

$(RUNS)/stage1/$(STAGE1_RUN)/done.json: $(CODES) $(ASKED_ALWAYS) | configs/stage1.yaml configs/presets/$(PRESET)/generator.yaml $(call OVERLAY,stage1) $(READY)
	$(call STAGE,stage1) $(CLI) $(call GENERATE,stage1,$(STAGE1_RUN)) $(call ARGS_OF,stage1)
	$(IF_MADE_NOW) $(PYTHON) -m commands.summary $(@D) && echo "stage 1 is in $(@D) (config.yaml, checkpoints/, metrics.json, lineage.json); $(call NEXT,stage2)"; fi

stage2: $(RUNS)/stage2/$(STAGE2_RUN)/done.json ## stages | Train it on all codes, starting from STAGE1=runs/…: local dependencies

$(RUNS)/stage2/$(STAGE2_RUN)/done.json: $(CODES) $(call escaped,$(STAGE1))/done.json $(ASKED_ALWAYS) | configs/stage2.yaml configs/presets/$(PRESET)/generator.yaml $(call OVERLAY,stage2) $(READY)
	$(call STAGE,stage2 $(if $(filter stage2,$(GENERATOR)),generator)) $(CLI) $(call GENERATE,stage2,$(STAGE2_RUN)) --model.init_from $(call quoted,$(STAGE1)) $(call ARGS_OF,stage2)
	$(IF_MADE_NOW) $(PYTHON) -m commands.summary $(@D) && echo "stage 2 is in $(@D) (config.yaml, checkpoints/, metrics.json, lineage.json); $(call NEXT,sample)"; fi

generator: $(TRAINED) ## stages | Train GENERATOR, by default stage 2, on the stored tokens

ifeq ($(filter stage1 stage2,$(GENERATOR)),)
$(TRAINED): $(CODES) $(ASKED_ALWAYS) | configs/$(GENERATOR).yaml configs/presets/$(PRESET)/generator.yaml $(call OVERLAY,$(GENERATOR)) $(READY)
	$(call STAGE,generator) $(CLI) $(call GENERATE,$(GENERATOR),$(GENERATOR_RUN)) $(call ARGS_OF,generator)
	$(IF_MADE_NOW) $(PYTHON) -m commands.summary $(@D) && echo "$(GENERATOR) is in $(@D); $(call NEXT,sample)"; fi
endif

sample: $(SAMPLED)/done.json ## stages | Generate images with GENERATOR: samples.npz and grid.png

$(SAMPLED)/done.json: $(TRAINED) $(ASKED_ALWAYS) | configs/sample.yaml configs/presets/$(PRESET)/sample.yaml $(call OVERLAY,sample_$(GENERATOR)) $(READY)
	$(call STAGE,sample) $(CLI) $(DRAW) $(call ARGS_OF,sample)
	$(IF_MADE_NOW) echo "the samples are in $(@D) (samples.npz, grid.png); $(call NEXT,evaluate)"; fi

condition: $(TRAINED) | $(READY) ## stages | Generate images around references (GENERATOR=next_scale): grid.png, samples.npz
	$(CLI) predict $(call CONFIG,condition,condition) --model.generator_run $(RUNS)/$(GENERATOR)/$(GENERATOR_RUN) --run.stage samples/$(notdir $(SAMPLED))_condition $(ROOT) $(ARGS)

evaluate: $(MEASURED) ## measure | Measure SAMPLES=any.npz, real images and reconstructions

# without a network of its own, a preset for own images is compared with its training images by Inception; ADM has measured ImageNet
REFERENCE := $(if $(TEACHERS_HERE)$(filter imagenet,$(PRESET)),,$(RUNS)/reference/train_inception.npz)
MEASURE_REAL = $(PYTHON) -m commands.reference --preset $(PRESET) --split $(1) $(if $(DATA),--data $(call quoted,$(DATA)))

$(RUNS)/reference/train_inception.npz: | $(READY)
	$(call MEASURE_REAL,train)

# ARGS may name another reference or network than that of the existing metrics, and metrics may exist without this reference
COMPARED := $(if $(call ARGS_OF,evaluate),measure-again,$(if $(wildcard $(MEASURED)),$(wildcard $(REFERENCE)),$(REFERENCE)))
.PHONY: measure-again
$(MEASURED): $(SAMPLES_MADE) $(TEACHERS_HERE) $(COMPARED) | $(READY)
	$(PYTHON) -m commands.evaluate --samples $(call quoted,$(SAMPLES)) --preset $(PRESET) $(call ARGS_OF,evaluate)
	@echo "the metrics are in $@; $(call NEXT,report)"

sweep: $(TRAINED) $(TEACHERS_HERE) | $(if $(ARGS),,$(REFERENCE)) ## measure | Measure GENERATOR at each guidance of CFG="1.0 1.5 2.0": sweep.json, sweep.png
	$(PYTHON) -m commands.sweep --run $(RUNS)/$(GENERATOR)/$(GENERATOR_RUN) --guidance $(CFG) --preset $(PRESET) $(ARGS)

dependency: $(CODES) ## measure | How far the stored codes of TOKENIZER depend on each other: dependency.json
	$(PYTHON) -m commands.dependency --store $(TOKENS) $(ARGS)

layers: $(TRAINED) $(TEACHERS_HERE) ## measure | Compare the blocks of GENERATOR with its output and a teacher: layers.json
	$(PYTHON) -m commands.layers --run $(RUNS)/$(GENERATOR)/$(GENERATOR_RUN) $(ARGS)

# what the features of a representation autoencoder still know, for the report; elsewhere it takes hours: make probe zero-shot
UNDERSTOOD := $(if $(and $(filter representation,$(KIND)),$(TEACHERS_HERE)),$(addprefix $(RUNS)/tokenizer/$(TOKENIZER_RUN)/,probes.json zero_shot.json))
# the page shows all runs, and what other goals of this command line measure, which come first. Newer files are no prerequisites, since the
# rule of probes.json may take hours; done.json and compared.json are left out, which every start may touch
ALSO  := $(filter tokenizer tokens generator sample caption experiment $(filter-out report app,$(MEASURES)),$(MAKECMDGOALS))
NEWER := $(ALSO) $(shell find -L $(RUNS) -mindepth 3 -maxdepth 3 -name '*.json' \
	! -name done.json ! -name compared.json -newer $(RUNS)/report.html 2>/dev/null)

report: $(RUNS)/report.html ## start | Put all runs and tables of PRESET on one page: report.html, and report.md

$(RUNS)/report.html: $(MEASURED) $(UNDERSTOOD) $(wildcard runs/experiments/results/*/*_$(PRESET).json) $(if $(strip $(NEWER)),ask) | $(ALSO) $(READY)
	$(PYTHON) -m commands.report --preset $(PRESET)
	@echo "the report is $@; that is the whole curriculum"

$(RUNS)/tokenizer/$(TOKENIZER_RUN)/probes.json: $(RUNS)/tokenizer/$(TOKENIZER_RUN)/done.json
	$(PYTHON) -m commands.probe --run $(@D)

$(RUNS)/tokenizer/$(TOKENIZER_RUN)/zero_shot.json: $(RUNS)/tokenizer/$(TOKENIZER_RUN)/done.json $(call escaped,$(CLASSES))
	$(PYTHON) -m commands.zero_shot --run $(@D) --classes $(call quoted,$(CLASSES))

probe: $(RUNS)/tokenizer/$(TOKENIZER_RUN)/done.json ## measure | Probe the features of TOKENIZER for the class: probes.json
	$(PYTHON) -m commands.probe --run $(RUNS)/tokenizer/$(TOKENIZER_RUN) $(ARGS)

zero-shot: $(RUNS)/tokenizer/$(TOKENIZER_RUN)/done.json $(call escaped,$(CLASSES)) ## measure | Classify images by features of TOKENIZER=ideal and names of classes: zero_shot.json
	$(PYTHON) -m commands.zero_shot --run $(RUNS)/tokenizer/$(TOKENIZER_RUN) --classes $(call quoted,$(CLASSES)) $(ARGS)

caption: $(RUNS)/caption_stage2/$(CAPTIONED)/done.json ## stages | Caption images from FEATURE=after/all of TOKENIZER, in two stages: captions.json

# stage 1 trains a projector to a language model, stage 2 both
CAPTION = $(CLI) fit $(call SIZED,$(1),caption) --run.stage $(1)/$(CAPTIONED) $(addprefix --trainer.max_steps ,$(call given,STEPS)) $(call placed,) --model.feature $(FEATURE) \
	--model.tokenizer_run $(RUNS)/tokenizer/$(TOKENIZER_RUN) $(if $(CAPTIONS),--data.source.root=$(call quoted,$(CAPTIONS)))

$(RUNS)/caption_stage1/$(CAPTIONED)/done.json: $(RUNS)/tokenizer/$(TOKENIZER_RUN)/done.json $(ASKED_ALWAYS) | configs/caption_stage1.yaml configs/presets/$(PRESET)/caption.yaml $(call OVERLAY,caption_stage1) $(READY)
	$(call STAGE,) $(call CAPTION,caption_stage1)

$(RUNS)/caption_stage2/$(CAPTIONED)/done.json: $(RUNS)/caption_stage1/$(CAPTIONED)/done.json $(ASKED_ALWAYS) | configs/caption_stage2.yaml $(call OVERLAY,caption_stage2) $(READY)
	$(call STAGE,caption) $(call CAPTION,caption_stage2) --model.init_from $(RUNS)/caption_stage1/$(CAPTIONED) $(call ARGS_OF,caption)
	$(IF_MADE_NOW) echo "BLEU and CIDEr-D are in $(@D)/metrics.json, the captions in captions.json"; fi

analysis: tokenizer ## measure | Analyse the subspaces of TOKENIZER: affinity, ablation, code maps
	$(PYTHON) cli.py validate $(ENCODER) --config configs/analysis.yaml --config configs/presets/$(PRESET)/analysis.yaml \
		$(call placed,ddp_find_unused_parameters_true) $(ARGS)

endif

pictures: analysis sample ## experiments | Copy the pictures of the runs and of the analysis into docs/images
	for name in affinity subspaces code_map usage components; do cp $(RUNS)/tokenizer/$(TOKENIZER_RUN)/$$name.png docs/images/$(PRESET)_$$name.png; done
	cp $(RUNS)/tokenizer/$(TOKENIZER_RUN)/reconstructions.png docs/images/$(PRESET).png
	cp $(SAMPLED)/grid.png docs/images/$(PRESET)_samples.png

plot: $(READY) ## experiments | Plot iFSQ Fig. 3 from its finished experiment into docs/images
	$(PYTHON) -m experiments show ifsq/fig3 --preset photos
	$(PYTHON) -m experiments.ifsq_plot runs/experiments/results/ifsq/fig3_photos.json docs/images/ifsq_fig3.png

weights: $(READY) ## start | Fetch VGG-16, Inception, ADM's reference (2 GB), and TEACHERS=clip_large_14, or those of recipes: TEACHERS="fq_dual ideal"
	$(PYTHON) -m commands.weights $(call given,TEACHERS)

reference: $(TEACHERS_HERE) | $(READY) ## measure | Measure the real images of SPLIT=validation (for rFID) or train (for gFID)
	$(call MEASURE_REAL,$(SPLIT)) $(ARGS)

parity: | $(READY) ## measure | Compare a released tokenizer with its authors' figures: CHECKPOINT=llamagen/vq_ds16_c2i FILE=… DATA=/path
	$(PYTHON) -m commands.parity $(call quoted,$(or $(call given,CHECKPOINT),llamagen/vq_ds16_c2i)) \
		$(if $(call given,FILE),--file $(call quoted,$(call given,FILE))) $(addprefix --preset ,$(call given,PRESET)) $(if $(DATA),--data $(call quoted,$(DATA))) $(ARGS)

consolidate: | $(READY) ## cluster | Make one file (whole.ckpt) of the sharded checkpoint of RUN=runs/…
	$(PYTHON) -m commands.consolidate $(call quoted,$(or $(call given,RUN),$(RUNS)/$(GENERATOR)/$(TOKENIZER)))

profile: | $(READY) ## measure | Find where the time of RUN=runs/… goes, a fit or a prediction: operators, idle GPU, a trace; STEPS=5
	@$(PYTHON) -m commands.profile $(call quoted,$(or $(call given,RUN),$(RUNS)/$(GENERATOR)/$(TOKENIZER))) $(addprefix --steps ,$(call given,STEPS))

experiment: $(TEACHERS_HERE) $(if $(filter ideal/%,$(EXPERIMENT)),$(DUAL) $(if $(shell grep -s zero_shot experiments/$(EXPERIMENT).yaml),$(call escaped,$(CLASSES)))) | $(READY) ## experiments | Run EXPERIMENT=ssq/table3 (ifsq/fig3 …) on PRESET; ARGS='--seeds 3'
	$(PYTHON) -m experiments run $(EXPERIMENT) --preset $(PRESET) $(ARGS)

# one stage as a job: experiments --sbatch submits it (LAUNCHER and CLUSTER reach it as variables of the environment)
.PHONY: experiment-stage
experiment-stage: | $(READY)
	$(PYTHON) -m experiments.start $(call quoted,$(call given,RUN))

# --- development -----------------------------------------------------------------------------------------------------

# these ARGS are pytest's; a make that a test runs must not inherit them
PYTEST := OMP_NUM_THREADS=1 env -u ARGS -u MAKEFLAGS -u MAKELEVEL $(PYTHON) -m pytest

test: $(READY) ## development | Run all tests of a single process, two at a time with a thread each
	$(PYTEST) --numprocesses 2 --dist worksteal $(ARGS)

test-slow: $(READY) ## development | Run the tests that take long: every recipe, pair, experiment and source of images
	$(PYTEST) -m slow --numprocesses 2 --dist worksteal $(ARGS)

test-cluster: $(READY) ## cluster | Run the tests of several processes, and jobs of a real SLURM (as root)
	$(PYTEST) -m cluster --numprocesses 2 --dist loadfile -rs $(ARGS)

drill: $(READY) ## development | Kill a curriculum on digits 20 times: it ends like an undisturbed one; ARGS='--kills 50'
	$(PYTHON) -m tests.drill $(ARGS)

soak: $(READY) ## development | Train for 20,000 tiny steps: memory, files, threads and time do not grow
	$(PYTHON) -m tests.soak $(ARGS)

fuzz: $(READY) ## development | Give 2,000 mutated files to the programs that read them; ARGS='--seed 1 --mutations 500'
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.fuzz $(ARGS)

lint: $(READY) ## development | Check style, types and imports
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(READY) ## development | Format the code
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

benchmark: $(READY) ## development | Measure speeds in training and sampling; writes benchmarks/results
	$(PYTHON) -m benchmarks.tokenizer
	$(PYTHON) -m benchmarks.generator

tensorboard: $(READY) ## start | Watch all runs on HOST=localhost, PORT=6006: curves, pictures, settings
	$(VENV)/bin/tensorboard --logdir runs --port $(or $(call given,PORT),6006) --host $(or $(call given,HOST),localhost)

# a generator that was not asked for by name may be missing
EXPLORED := $(if $(or $(filter command environment,$(origin GENERATOR)),$(wildcard $(RUNS)/$(GENERATOR)/$(GENERATOR_RUN)/.)),$(RUNS)/$(GENERATOR)/$(GENERATOR_RUN))
app: | $(READY) ## start | Explore TOKENIZER and GENERATOR in a browser, on HOST=127.0.0.1, PORT=7860; needs the extra `app`
	$(PYTHON) -m commands.app --tokenizer $(RUNS)/tokenizer/$(TOKENIZER_RUN) $(addprefix --generator ,$(EXPLORED)) \
		--host $(or $(call given,HOST),127.0.0.1) --port $(or $(call given,PORT),7860) $(ARGS)

clean: ## start | Delete the runs of PRESET, after a question; YES=1 answers it
	@test -d $(RUNS) || { echo "there is no $(RUNS)"; exit 1; }
	@test -n "$(call given,YES)" || { printf 'delete %s (%s)? [y/N] ' $(RUNS) "$$(du -sh $(RUNS) | cut -f 1)"; read -r answer; test "$$answer" = y; } || { echo "nothing was deleted"; exit 1; }
	rm -rf $(RUNS)

status: | $(READY) ## start | List the stages of PRESET: finished, unfinished with its step, not begun
	@$(PYTHON) -m commands.status --preset $(PRESET) --next "$(call NEXT,curriculum)" \
		$(patsubst $(RUNS)/%/done.json,%,$(TEACHERS_HERE) $(if $(NAMES_DUAL),$(DUAL))) tokenizer/$(TOKENIZER_RUN) tokens/$(TOKENS_RUN) \
		$(if $(filter stage2,$(GENERATOR)),stage1/$(STAGE1_RUN)) $(GENERATOR)/$(GENERATOR_RUN) samples/$(notdir $(SAMPLED))
