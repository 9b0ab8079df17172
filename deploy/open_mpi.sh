#!/usr/bin/env bash
# Open MPI: one process for each GPU. HOSTS is a host file with slots; the workdir is on storage that all of them share.
# HOSTS=hosts.txt bash deploy/open_mpi.sh --config=configs/lvis_v1_r50_eql.py --workdir=/shared/lvis_v1_r50_eql
# When a process goes away the others end, mpirun ends, and the loop starts all again from the newest checkpoint.
set -uo pipefail
cd "$(dirname "$0")/.."
HOSTS=${HOSTS:?a host file, lines such as "node1 slots=8"}
PORT=${PORT:-29400}
processes=$(awk '!/^ *(#|$)/ {n = 1; if (match($0, /slots=[0-9]+/)) n = substr($0, RSTART + 6, RLENGTH - 6); s += n} END {print s}' "$HOSTS")
COORDINATOR=$(awk '!/^ *(#|$)/ {print $1; exit}' "$HOSTS"):$PORT
export COORDINATOR
# Under Open MPI 4 --distributed alone would do; version 5 has none of the variables that JAX looks for.
one='JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK exec python train.py --coordinator="$COORDINATOR" \
  --num_processes="$OMPI_COMM_WORLD_SIZE" --process_id="$OMPI_COMM_WORLD_RANK" "$@"'
while true; do
  mpirun --hostfile "$HOSTS" -np "$processes" --bind-to none -x PATH -x COORDINATOR bash -c "$one" train "$@"
  status=$?
  case $status in
    75 | 134 | 137) sleep 10 ;; # another process is gone; 137: one was killed
    *) exit "$status" ;;
  esac
done
