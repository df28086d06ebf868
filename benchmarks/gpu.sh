#!/usr/bin/env bash
# Decoding and training on one GPU in eight minutes, without a network: benchmarks/gpu.sh [--seconds 480] [--output FILE]
# Needs a GPU, torch and the packages of `pip install .`; for the tokenizer Lightning, timm and torchmetrics. --tiny tests it on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[[ -x $python ]] || python=python3
export PYTHONUNBUFFERED=1
exec "$python" -m benchmarks.gpu "$@"
