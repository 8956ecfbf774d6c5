#!/usr/bin/env bash
# The paper on one page: Llama 2 from 4k to 64k (s=16), and from there to 128k (s=32), each evaluated.
#
#   launch/chain.sh                                     7B on every GPU of this machine
#   SIZE=13b launch/chain.sh memory.offload=true        options go to every step
#
# It stops at the first failure. The same line goes on: what is prepared or trained already is not done again.
# NPROC_PER_NODE and the other variables of launch/torchrun.sh hold for every step; GPU (h100) and GPUS (those of
# all machines: NPROC_PER_NODE x NNODES, 8 per machine where no number says) are what the expected hours are for. FIRST
# and SECOND name other experiments, OUT another folder than outputs.
# On Slurm each stage is a job of its own, and the second waits for the first:
#   job=$(sbatch --parsable ... launch/slurm.sbatch experiment=yarn_llama2_7b_64k)
#   sbatch --dependency=afterok:$job ... launch/slurm.sbatch experiment=yarn_llama2_7b_128k run.init_from=outputs/yarn_llama2_7b_64k
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SIZE=${SIZE:-7b} OUT=${OUT:-outputs} GPU=${GPU:-h100}
case "${NPROC_PER_NODE:-gpu}" in *[!0-9]*) per_machine=8 ;; *) per_machine=$NPROC_PER_NODE ;; esac
GPUS=${GPUS:-$((per_machine * ${NNODES:-1}))}
FIRST=${FIRST:-yarn_llama2_${SIZE}_64k} SECOND=${SECOND:-yarn_llama2_${SIZE}_128k}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
PYTHON=${PYTHON:-python}

plan() {
  local said code=0
  said=$("$PYTHON" -m yarn_train.plan "plan.gpu=$GPU" "plan.gpus=$GPUS" "$@") || code=$?
  # All of it where it does not fit: it says what would.
  if [ "$code" -ne 0 ]; then echo "$said"; return "$code"; fi
  grep -E '^stage|^ +(memory|total|disk) ' <<<"$said" || true
}
prepare() { run "$PYTHON" data/prepare.py "$@"; }
train() { run launch/torchrun.sh "$@"; }
evaluate() { run launch/torchrun.sh -m yarn_train.eval eval=perplexity "model.path=$(echo "$1"/*/model)" "${@:2}"; }

# A signal to this script asks the step at hand to stop, workers with a checkpoint; no further step begins.
asked="" running=""
trap 'asked=75; [ -z "$running" ] || kill -TERM "$running" 2>/dev/null' INT TERM USR1 HUP

run() {
  [ -z "$asked" ] || exit "$asked"
  "$@" &
  running=$!
  [ -z "$asked" ] || kill -TERM "$running" 2>/dev/null # it came between the two lines above
  while kill -0 "$running" 2>/dev/null; do wait "$running" || true; done
  local done=$running
  running=""
  wait "$done"
}

step() {
  [ -z "$asked" ] || exit "$asked"
  printf '\n== %s\n' "$1"
}

step "prepare the documents of $FIRST"
prepare "experiment=$FIRST" "$@"

step "$FIRST, expected"
plan "experiment=$FIRST" "$@"
train "experiment=$FIRST" "run.dir=$OUT/$FIRST" "$@"
step "evaluate $FIRST"
evaluate "$OUT/$FIRST" "experiment=$FIRST" "$@"

step "$SECOND from $FIRST, expected"
plan "experiment=$SECOND" "$@"
train "experiment=$SECOND" "run.dir=$OUT/$SECOND" "run.init_from=$OUT/$FIRST" "$@"
step "evaluate $SECOND"
evaluate "$OUT/$SECOND" "experiment=$SECOND" "$@"
