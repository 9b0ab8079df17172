#!/usr/bin/env bash
# Open MPI: one process for each GPU. HOSTS is a host file with slots; this folder and the workdir are shared by all.
# HOSTS=hosts.txt bash deploy/open_mpi.sh --config=configs/lvis_v1_r50_eql.py --workdir=/shared/lvis_v1_r50_eql
# When a process goes away the others end, and all start again. Ctrl-C or SIGTERM: all save and end; a second: at once.
set -uo pipefail
cd "$(dirname "$0")/.."
HOSTS=${HOSTS:?a host file, lines such as "node1 slots=8"}
PORT=${PORT:-29400}
processes=$(awk '!/^ *(#|$)/ {n = 1; if (match($0, /slots=[0-9]+/)) n = substr($0, RSTART + 6, RLENGTH - 6); s += n} END {print s}' "$HOSTS")
COORDINATOR=$(awk '!/^ *(#|$)/ {print $1; exit}' "$HOSTS"):$PORT
# mpirun has one status for all: a process that ends with something for a person to look at says so in this file.
FAILED=$PWD/open_mpi_$(hostname)_$$.failed
export COORDINATOR FAILED
# To SIGTERM mpirun adds SIGKILL a second later; SIGUSR1 it passes on, and each process gets SIGTERM here.
# Under Open MPI 4 --distributed alone would do; version 5 has none of the variables that JAX looks for.
one='trap "" USR1
JAX_LOCAL_DEVICE_IDS=$OMPI_COMM_WORLD_LOCAL_RANK python train.py --coordinator="$COORDINATOR" \
  --num_processes="$OMPI_COMM_WORLD_SIZE" --process_id="$OMPI_COMM_WORLD_RANK" "$@" &
trap "kill -TERM $!" USR1
trap : TERM
until wait $!; status=$?; ! kill -0 $! 2>/dev/null; do :; done # a signal ends wait, not the process
((status < 1 || status == 75 || status > 128)) || echo "$status $OMPI_COMM_WORLD_RANK" >>"$FAILED"
exit $status'

stopped=0
stop() {
  ((stopped += 1))
  kill "-$( ((stopped > 1)) && echo TERM || echo USR1)" "$mpirun" 2>/dev/null
}
mpirun=
trap stop INT TERM
trap 'rm -f "$FAILED"' EXIT
while true; do
  # In a session of its own, where Ctrl-C does not reach it.
  setsid mpirun --hostfile "$HOSTS" -np "$processes" --bind-to none -x PATH -x COORDINATOR -x FAILED \
    bash -c "$one" train "$@" &
  mpirun=$!
  until wait "$mpirun"; status=$?; ! kill -0 "$mpirun" 2>/dev/null; do :; done
  if [[ -e $FAILED ]]; then
    read -r status rank <"$FAILED"
    echo "process $rank ended with status $status, for a person to look at: not started again" >&2
    exit "$status"
  fi
  case $status in
    75 | 134 | 137) ((stopped)) || { sleep 10 & wait $!; } ;; # another process is gone; 137: one was killed
    *) exit "$status" ;;
  esac
  ((stopped)) && exit "$status"
done
