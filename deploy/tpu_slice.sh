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
# gcloud has one status for all: a host that ends with something for a person to look at says so in ~/eql_jax.failed.
train="cd eql_jax && rm -f ~/eql_jax.failed || exit
.venv/bin/python train.py --distributed --config=$CONFIG --workdir=$WORKDIR ${*@Q}"'
status=$?
case $status in 0 | 75) ;; *) echo "$(hostname): status $status" | tee ~/eql_jax.failed >&2 ;; esac
exit $status'
while true; do
  status=0
  on_all_hosts "$train" || status=$?
  # Only 75 starts again. ssh has 255 where a host is gone, and ends the loop on purpose: the slice must be made again.
  [[ $status == 75 ]] || exit "$status"
  on_all_hosts '! cat ~/eql_jax.failed 2>/dev/null' || exit 1 # the 75 of one host may hide the 1 or 2 of another
  sleep 10
done
