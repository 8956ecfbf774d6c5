#!/usr/bin/env bash
# Start a real Slurm of two nodes on this machine, as root, in a scratch folder: tests/slurm/start.sh FOLDER
#
# munged, slurmctld and two slurmd, of the packages slurmctld, slurmd, slurm-client and munge; no accounting. Then:
#   export SLURM_CONF=FOLDER/slurm.conf; sinfo; sbatch ...; tests/slurm/stop.sh FOLDER
set -euo pipefail

folder=${1:?FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
[ "$(id -u)" -eq 0 ] || { echo "slurmd starts jobs as other users: it needs root" >&2; exit 1; }
for program in munged mungekey slurmctld slurmd scontrol; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || { echo "$program is not installed" >&2; exit 1; }
done
PATH=$PATH:/usr/sbin:/sbin

# munged refuses to trust folders that others may write to: its key and socket live where all of the path is root's.
munge=/run/yarn-train-munge.$$
install -d -o munge -g munge -m 755 "$munge"
echo "$munge" >"$folder/munge"
runuser -u munge -- mungekey --create --force --keyfile "$munge/key"
runuser -u munge -- munged --force --key-file="$munge/key" --socket="$munge/socket" --pid-file="$munge/pid" \
  --log-file="$munge/log" --seed-file="$munge/seed"

host=$(hostname -s)
nodes=(first second) # both are this machine, whose own name Slurm does not take twice
# Ports of this folder's own, so that two of these can run at a time; those of jobs (launch/slurm.sbatch) begin at 20000.
port=$((10000 + $$ % 3000 * 3))
cat >"$folder/slurm.conf" <<EOF
ClusterName=yarn-train-test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd_%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd_%n.log
SlurmdSpoolDir=$folder/spool_%n
StateSaveLocation=$folder/state
AuthType=auth/munge
AuthInfo=socket=$munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=600
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
NodeName=${nodes[0]} NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=$(nproc) RealMemory=1000
NodeName=${nodes[1]} NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=$(nproc) RealMemory=1000
PartitionName=test Nodes=${nodes[0]},${nodes[1]} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
EOF
mkdir -p "$folder/state" "$folder/spool_${nodes[0]}" "$folder/spool_${nodes[1]}"

export SLURM_CONF=$folder/slurm.conf
slurmctld -c
for node in "${nodes[@]}"; do slurmd -N "$node"; done
for _ in $(seq 100); do
  [ "$(sinfo --noheader --format='%t %D' 2>/dev/null)" != "idle 2" ] || break
  sleep 0.1
done
sinfo
[ "$(sinfo --noheader --format='%t %D')" = "idle 2" ] || { cat "$folder"/slurm*.log "$munge/log" >&2; exit 1; }
echo "export SLURM_CONF=$SLURM_CONF"
