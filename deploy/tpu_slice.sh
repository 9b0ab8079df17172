#!/usr/bin/env bash
# A TPU pod slice: the same command on every host of it; JAX finds the others by itself (--distributed).
# Set NAME, ZONE and WORKDIR, a bucket that all hosts can write to; the slice must exist, with this repository at ~/eql_jax.
# When the slice was taken away, make it again and run this again: the run goes on from its newest checkpoint.
set -euo pipefail
NAME=${NAME:?name of the TPU}
ZONE=${ZONE:?such as us-central2-b}
WORKDIR=${WORKDIR:?such as gs://bucket/runs/lvis_v1_r50_eql}
CONFIG=${CONFIG:-configs/lvis_v1_r50_eql.py}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

on_all_hosts "cd eql_jax && python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'"
while true; do
  status=0
  on_all_hosts "cd eql_jax && .venv/bin/python train.py --distributed --config=$CONFIG --workdir=$WORKDIR ${*@Q}" || status=$?
  # ssh has 255 where a host is gone; 75 says to start again. 1 and 2 are for a person to look at.
  case $status in
    75) sleep 10 ;;
    *) exit "$status" ;;
  esac
done
