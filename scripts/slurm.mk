# Stages as SLURM jobs, for `make TARGET LAUNCH=slurm` (docs/clusters.md). A job runs `make TARGET` again, in
# its allocation, so that the Makefile alone defines a stage.

# on the command line only, as without jobs
NODES      := 1
GPUS       ?= $(or $(call given,DEVICES),1)
CPUS       ?= 8
TIME       ?= 24:00:00
PARTITION  ?=
STRATEGY   ?=
SBATCH_ARGS ?=

TASKS       = $(if $(filter 0,$(GPUS)),1,$(GPUS))
# for `make check`: the shape of the jobs
placed      = --trainer.devices $(TASKS) --trainer.num_nodes $(NODES) $(if $(SEVERAL),$(addprefix --trainer.strategy ,$(1)),--trainer.strategy auto)
# order of the chain; a preset with published networks trains no teachers
CURRICULUM := $(if $(wildcard configs/presets/$(PRESET)/teacher_mid.yaml),teacher) tokenizer tokens \
	$(if $(filter stage2,$(GENERATOR)),stage1 stage2,generator) sample evaluate report
SUBMITTED  := teacher tokenizer tokens tokens-check stage1 stage2 generator sample evaluate sweep report probe zero-shot caption analysis
# stages of a single process
SINGLE     := tokens-check evaluate sweep report probe zero-shot analysis teacher
HANDED_ON  := PRESET TOKENIZER GENERATOR RUN STEPS DATA STAGE1 SAMPLES CLASSES CAPTIONS FEATURE CFG

# as without jobs, STEPS of other targets leave the teachers alone
UNASKED = $(if $(filter teacher,$(filter-out $(MAKECMDGOALS),$(1))),STEPS)

# $(1) is the stage: options of sbatch, and arguments of the job's make
ASKED = --job-name=$(PRESET)-$(1) --output=$(RUNS)/slurm/%x-%j.log --time=$(TIME) $(PARTITION:%=--partition=%) \
	$(if $(filter $(1),$(SINGLE)),$(call SHAPE,1,$(if $(filter 0,$(GPUS)),0,1),1),$(call SHAPE,$(NODES),$(GPUS),$(TASKS))) $(SBATCH_ARGS)
SHAPE = --nodes=$(1) --ntasks-per-node=$(3) $(if $(filter-out 0,$(2)),--gpus-per-node=$(2)) --cpus-per-task=$(CPUS)
MADE  = $(1) $(foreach name,$(filter-out $(UNASKED),$(HANDED_ON)),$(if $(findstring command,$(origin $(name))),$(call quoted,$(name)=$($(name))))) \
	$(if $(filter-out $(SINGLE),$(1)),$(addprefix STRATEGY=,$(or $(STRATEGY),$(if $(filter tokenizer,$(1)),$(SEVERAL:%=ddp)))))
# tokenizers need another strategy than Lightning's default for several devices
SEVERAL = $(filter-out 1 1-1,$(NODES)-$(TASKS))

define newline


endef

NOT_HERE := $(filter-out help check status curriculum demo $(SUBMITTED),$(MAKECMDGOALS))
$(if $(NOT_HERE),$(error LAUNCH=slurm submits curriculum $(SUBMITTED): leave it out for $(NOT_HERE)))

$(SUBMITTED): | $(READY)
	@mkdir -p $(RUNS)/slurm
	sbatch $(strip $(call ASKED,$@)) scripts/train.sbatch $(call MADE,$@) $(if $(ARGS),$(call quoted,ARGS=$(ARGS)))

demo: curriculum

curriculum: $(CHECKED) | $(READY)
	@mkdir -p $(RUNS)/slurm
	@set -e; $(foreach stage,$(CURRICULUM),\$(newline)\
	job=$$(sbatch --parsable $${job:+--dependency=afterok:$$job --kill-on-invalid-dep=yes} $(strip $(call ASKED,$(stage))) scripts/train.sbatch $(call MADE,$(stage))); echo "$(stage): job $$job";)
