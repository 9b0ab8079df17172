#!/usr/bin/env bash
# One machine with several GPUs: one process drives them all, so there is nothing to join and no launcher.
# bash deploy/gpu_node.sh --config=configs/lvis_v1_r50_eql.py --workdir=runs/lvis_v1_r50_eql
# CUDA_VISIBLE_DEVICES=0,1 takes some of them. Ctrl-C and SIGTERM save and stop; the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python train.py "$@"
