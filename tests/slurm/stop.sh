#!/usr/bin/env bash
# Stop the Slurm that tests/slurm/start.sh started in FOLDER, and every job of it: tests/slurm/stop.sh FOLDER
# It exits with 1 where something outlives it, and says what.
set -uo pipefail

folder=${1:?FOLDER}
munge=$(cat "$folder/munge") || exit 1
export SLURM_CONF=$folder/slurm.conf
code=0

# within SECONDS COMMAND...: tries it until it succeeds
within() {
  for _ in $(seq $(($1 * 10))); do "${@:2}" && return; sleep 0.1; done
  return 1
}

# shellcheck disable=SC2317,SC2329  # called by its name
no_job() { [ -z "$(squeue --noheader 2>/dev/null)" ]; }
# shellcheck disable=SC2317,SC2329
ended() { ! kill -0 "$1" 2>/dev/null; }

scancel --user=root 2>/dev/null
within 90 no_job || { squeue >&2; code=1; } # one that ignores SIGTERM takes KillWait, 30 s, and some
for file in "$folder"/slurmd_*.pid "$folder/slurmctld.pid" "$munge/pid"; do
  [ -s "$file" ] || continue
  number=$(<"$file")
  kill "$number" 2>/dev/null || continue
  within 10 ended "$number" || kill -KILL "$number"
  within 10 ended "$number" || { echo "$file: $number does not end" >&2; code=1; }
done
rm -rf "$munge"
exit "$code"
