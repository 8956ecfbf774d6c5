#!/usr/bin/env bash
# Start the workers of one machine: launch/torchrun.sh [-m MODULE | FILE.py] OPTIONS...     (train.py when none is named)
#
#   launch/torchrun.sh experiment=yarn_llama2_7b_64k              every GPU of this machine
#   NPROC_PER_NODE=2 launch/torchrun.sh experiment=smoke          two workers, with or without GPUs
#   launch/torchrun.sh -m yarn_train.eval eval=perplexity model.path=outputs/run/01_s16/model
#   NNODES=2 RDZV_ENDPOINT=node1:29500 launch/torchrun.sh ...     the same line on each of two machines
#
# NPROC_PER_NODE   workers of this machine: a number, or gpu for one per GPU      (default: auto: gpu, or 1 without a GPU)
# NNODES           machines of the run                                            (default: 1)
# RDZV_ENDPOINT    host:port of one of them, where all meet; needed for NNODES > 1
# RDZV_ID          name of this start of the run, the same on all machines        (default: the date, or "run")
# MAX_RESTARTS     times that failed workers are started again, from the newest checkpoint (default: 0)
# AGENT_TIMEOUT    seconds that torchrun may take to end after its workers; it may wait 300 for those of other machines
#                  (default: 330)
# LOG_DIR          where <RDZV_ID>/node_<n>/ has every rank's lines; the first rank's are on the console too
#                                                                                 (default: outputs/logs)
# NODE_RANK        this machine's number, for the name of its logs                (default: SLURM_NODEID, or 0)
# PYTHON           (default: the repository's .venv, then python on the PATH)
# JOB_EXIT_FILE    for whoever starts several of these: 75, 2, 3, 4 and 5 are written there, and 75 becomes 0
#
# It runs in the repository's folder, so that outputs/ and data/ are the same wherever it is started from; see
# launch/env.sh for the environment. SIGTERM, SIGUSR1, SIGHUP and Ctrl-C ask for a checkpoint and a stop; a second one,
# from 2 s later on, stops without: at once, or after the 30 s that torchrun gives workers that hang. Exit codes: 0 done;
# 75 stopped on request or by run.max_hours, the same line goes on (130 after Ctrl-C); 2 the options are wrong; 3 it does
# not fit; 4 it diverged; 5 its storage is full or read-only; anything else is torchrun's own. 2 to 5 are not tried again.
set -uo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

main() {
  requests=0 asked_at=-9 interrupted="" agent="" ended="" told=""
  trap on_request TERM USR1 HUP
  trap 'interrupted=yes; on_request' INT
  choose_python
  choose_entry "$@"
  choose_workers
  check_rendezvous
  # shellcheck source=launch/env.sh
  . launch/env.sh
  choose_logs
  shared=$(mktemp -d "${TMPDIR:-/tmp}/yarn-train.XXXXXX") || exit 1
  trap 'rm -rf "$shared"' EXIT
  start_agent
  wait_for_agent
  choose_code
  leave
}

# Schedulers may send several signals, which workers take for one request within a second.
# shellcheck disable=SC2317,SC2329  # traps call it
on_request() {
  [ $((SECONDS - asked_at)) -ge 2 ] || return
  requests=$((requests + 1)) asked_at=$SECONDS
  [ -n "$agent" ] || { echo "stopped before the run began" >&2; code=75; leave; }
}

choose_python() {
  if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=$PWD/.venv/bin/python; fi
  PYTHON=${PYTHON:-python}
  case "$PYTHON" in /*) ;; */*) PYTHON=$here/$PYTHON ;; esac
  command -v "$PYTHON" >/dev/null || refuse "there is no $PYTHON; make setup makes .venv/bin/python, PYTHON names another"
}

choose_entry() {
  case "${1:-}" in
    -m)
      case "${2:-=}" in *=*) refuse "-m needs the name of a module, such as yarn_train.eval; \
several runs: python train.py -m launch.nproc_per_node=${NPROC_PER_NODE:-gpu} ${*:2}" ;; esac
      command=("$@") ;;
    *=*) command=("$PWD/train.py" "$@") ;;
    *.py)
      command=("$@")
      case "$1" in /*) ;; *) [ ! -f "$here/$1" ] || command[0]=$here/$1 ;; esac
      [ -f "${command[0]}" ] || refuse "there is no $1, neither in $here nor in $PWD" ;;
    *) command=("$PWD/train.py" "$@") ;;
  esac
}

choose_workers() {
  local cores
  case "${NPROC_PER_NODE:=auto}" in
    auto | gpu)
      local gpus
      gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())') || refuse "$PYTHON cannot import torch"
      if [ "$gpus" -eq 0 ]; then
        [ "$NPROC_PER_NODE" = auto ] || refuse "NPROC_PER_NODE=gpu, and torch sees no GPU here; set NPROC_PER_NODE to a number"
        echo "torch sees no GPU here and NPROC_PER_NODE names no number: 1 worker on the CPU" >&2
      fi
      NPROC_PER_NODE=$((gpus > 0 ? gpus : 1)) ;;
    0 | *[!0-9]*) refuse "NPROC_PER_NODE=$NPROC_PER_NODE; it is a number of workers, gpu or auto" ;;
  esac
  cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null) || return
  [ "$cores" -ge "$NPROC_PER_NODE" ] || echo "warning: $NPROC_PER_NODE workers share $cores CPU core(s); \
Slurm gives more with --exclusive or --cpus-per-task" >&2
}

check_rendezvous() {
  NNODES=${NNODES:-1}
  case "$NNODES" in 0 | *[!0-9]*) refuse "NNODES=$NNODES; it is a number of machines" ;; esac
  if [ "$NNODES" -eq 1 ]; then
    RDZV_ID=${RDZV_ID:-$(date +%Y-%m-%d_%H-%M-%S)}
    # Port 0: any that is free. Workers meet on the loopback, as a machine's own name need not resolve.
    rendezvous=(--rdzv-endpoint "${RDZV_ENDPOINT:-localhost:0}")
    [ -n "${RDZV_ENDPOINT:-}" ] || rendezvous+=(--local-addr 127.0.0.1)
  else
    RDZV_ID=${RDZV_ID:-run}
    [ -n "${RDZV_ENDPOINT:-}" ] || refuse "NNODES=$NNODES needs RDZV_ENDPOINT=host:port of one of the machines"
    rendezvous=(--rdzv-endpoint "$RDZV_ENDPOINT")
  fi
}

choose_logs() {
  local node=${NODE_RANK:-${SLURM_NODEID:-0}}
  folder=${LOG_DIR:-outputs/logs}/$RDZV_ID/node_$node
  mkdir -p "$folder" || exit 1
  # The console has the first rank of every machine: which machine gets rank 0 is decided when they meet.
  logs=(--log-dir "$folder" --redirects 3 --tee 3 --local-ranks-filter 0)
  : "${TORCH_FR_DUMP_TEMP_FILE:=$folder/collectives_of_rank_}" # see launch/env.sh
  export TORCH_FR_DUMP_TEMP_FILE
}

start_agent() {
  # torchrun takes any exit code but 0 for a failure, of which it makes 1. Workers therefore leave that of a stop in the
  # first file and that of what the user has to mend beside it; those that begin while the other file exists stop.
  export YARN_TRAIN_EXIT_FILE=$shared/exit YARN_TRAIN_STOP_FILE=$shared/stop
  local tied=()
  # Nobody would stop torchrun after this script, however it dies; workers die with torchrun (dist/orphans.py).
  if setpriv --pdeathsig KILL true 2>/dev/null; then tied=(setpriv --pdeathsig KILL); fi
  agent=starting # from here on a request is for torchrun
  # Job control gives torchrun a process group of its own. Ctrl-C, and a scheduler that signals the whole group, would
  # reach it as well, and it answers by killing the workers after 30 s, however long their checkpoint takes.
  set -m
  (
    trap '' USR1 # neither it nor workers that still import handle it: they would die
    exec "${tied[@]}" "$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" \
      --rdzv-backend c10d "${rendezvous[@]}" --rdzv-id "$RDZV_ID" --max-restarts "${MAX_RESTARTS:-0}" \
      "${logs[@]}" "${command[@]}"
  ) &
  agent=$!
  set +m
}

wait_for_agent() {
  local heard=0 nap workers begun="" busy_at=0 left_at=""
  while kill -0 "$agent" 2>/dev/null; do
    [ "$requests" -eq 0 ] || : >"$YARN_TRAIN_STOP_FILE"
    list_workers
    [ -z "$workers" ] || begun=yes busy_at=$SECONDS
    if [ "$requests" -gt "$heard" ]; then
      heard=$requests
      pass_on
    fi
    end_what_hangs
    sleep 1 &
    nap=$!
    wait -n # for the agent or the nap; a signal interrupts it
    kill "$nap" 2>/dev/null
  done
  wait "$agent"
  code=$?
} 3>&2 2>/dev/null # where bash says that a job was killed

# A signal to the whole group kills the listing too, which must not read as no workers: 128 and more are signals.
list_workers() {
  while :; do
    workers=$(ps -o pid=,stat= --ppid "$agent" | sed -n '/ Z/!s/^ *\([0-9]*\).*/\1/p') # zombies have ended
    [ $? -gt 128 ] || return
  done
}

# Tell the workers, and none but them. Without any (before the first, between two attempts) there is nothing to save.
pass_on() {
  # shellcheck disable=SC2086  # one word each
  [ -z "$workers" ] || kill -USR1 $workers
  if [ -z "$workers" ] || [ "$requests" -gt 1 ]; then end_agent asked; fi
}

end_agent() {
  kill -TERM "$agent"
  ended=$1 told=$workers
}

end_what_hangs() {
  local worker
  if [ -z "$ended" ] && [ -s "$shared/exit.error" ] && [ "${MAX_RESTARTS:-0}" != 0 ]; then
    end_agent refused # wrong options, a diverged run and a full disk do not get better
  fi
  # A signal that comes while torchrun starts its workers again may be lost there: those it starts afterwards tell.
  if [ "$ended" = asked ] || [ "$ended" = refused ]; then
    for worker in $workers; do
      case " ${told//$'\n'/ } " in *" $worker "*) ;; *) end_agent "$ended"; break ;; esac
    done
  fi
  # All leave a training step together, after the save; anywhere else one that waits for a rank that left would not end.
  if [ "$requests" -gt 0 ] && [ -n "$workers" ] && [ -s "$shared/exit" ]; then
    : "${left_at:=$SECONDS}"
    if [ $((SECONDS - left_at)) -ge 10 ]; then
      echo "others stopped 10 s ago, these workers wait for them and are killed: ${workers//$'\n'/ }" >&3
      # shellcheck disable=SC2086  # one word each
      kill -KILL $workers
      ended=hung
    fi
  fi
  # An agent whose link to the rendezvous is cut may wait for the kernel to give the connection up, a quarter of an hour,
  # long after its workers have ended.
  if [ -n "$begun" ] && [ $((SECONDS - busy_at)) -ge "${AGENT_TIMEOUT:-330}" ]; then
    echo "torchrun has had no workers for ${AGENT_TIMEOUT:-330} s and does not end: its rendezvous does not answer" >&3
    kill -KILL "$agent"
    ended=stuck
  fi
}

choose_code() {
  if [ "$code" -ne 0 ] && [ -s "$shared/exit.error" ]; then
    code=$(<"$shared/exit.error")
    [ -z "${JOB_EXIT_FILE:-}" ] || echo "$code" >"$JOB_EXIT_FILE"
  elif [ -s "$shared/exit" ] && { [ "$code" -eq 0 ] || [ -n "$ended" ]; }; then
    code=$(<"$shared/exit")
  elif [ "$code" -ne 0 ] && [ "$ended" = asked ]; then
    echo "stopped without a checkpoint" >&2
    code=75
  fi
}

leave() {
  # The message of a full disk does not fit into logs that lie on it.
  if [ -s "${shared:-}/exit.told" ] && ! grep -rqsF "$(head -n 1 "$shared/exit.told")" "$folder"; then
    cat "$shared/exit.told" >&2
  fi
  if [ -n "$interrupted" ] && [ "$code" -eq 75 ]; then code=130; fi
  case "$code" in
    0 | 75 | 130) ;;
    *) echo "exit code $code; what each rank printed: $folder" >&2 ;;
  esac
  if [ "$code" -eq 75 ] && [ -n "${JOB_EXIT_FILE:-}" ]; then
    [ -s "$JOB_EXIT_FILE" ] || echo 75 >"$JOB_EXIT_FILE" # what another one failed with counts more
    code=0
  fi
  exit "$code"
}

refuse() {
  echo "error: $1" >&2
  exit 2
}

main "$@"
