# shellcheck shell=bash
# Sourced by launch/torchrun.sh: what the environment of a run should say, and why.
# What is set already stays as it is. tests/launch/test_scripts.py checks that torch and NCCL know every name.

# Segments of GPU memory that grow, so that sequences of many lengths do not split it into pieces nothing fits into.
# A user's choice under the older name counts too.
: "${PYTORCH_ALLOC_CONF:=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}"
export PYTORCH_ALLOC_CONF

# The flight recorder remembers the last collectives of each rank and writes them down when one times out:
# `python -m torch.distributed.flight_recorder.fr_trace <folder>` then names the rank that was missing.
# launch/torchrun.sh says where it writes: beside the logs of the ranks.
: "${TORCH_FR_BUFFER_SIZE:=2000}"
: "${TORCH_NCCL_DUMP_ON_TIMEOUT:=1}"
export TORCH_FR_BUFFER_SIZE TORCH_NCCL_DUMP_ON_TIMEOUT

# Seconds until a watchdog that hangs itself (in a CUDA or NCCL call) ends the process. launch.timeout (600 s) must
# come first, with time for the flight recorder to write: its message says what happened, this one does not.
: "${TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC:=900}"
export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC

# Workers of a restart otherwise find the addresses of those that failed in the agent's store, and connect to nobody.
if [ "${MAX_RESTARTS:-0}" != 0 ]; then
  : "${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:=1}"
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE
fi

# NCCL says what went wrong; INFO says what it chose (rings, transports, network) and is the first thing to try.
: "${NCCL_DEBUG:=WARN}"
export NCCL_DEBUG
# NCCL finds interfaces by itself. Only where it picks the wrong one (a management network, docker0), or where gloo
# resolves the host's name to an address that other machines cannot reach:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# And only to find out whether InfiniBand is what is broken; it costs most of the speed:
# export NCCL_IB_DISABLE=1

# Preparation forks after it has tokenised; the threads that Rust's tokenizer would keep cannot follow into a fork.
# Our workers are processes, one per core, so nothing is lost.
: "${TOKENIZERS_PARALLELISM:=false}"
export TOKENIZERS_PARALLELISM

# Lines appear when they are printed: logs are files here, and the last lines before a crash are the ones that matter.
: "${PYTHONUNBUFFERED:=1}"
export PYTHONUNBUFFERED

# torchrun says 1 thread where nobody chose; then host work (offloaded optimizer states, packing, the whole step on
# CPUs) leaves the other cores idle. Each worker takes its share. A single worker is left to torch, which takes all.
if [ -z "${OMP_NUM_THREADS:-}" ] && [ "${NPROC_PER_NODE:-1}" -gt 1 ] 2>/dev/null && command -v nproc >/dev/null; then
  OMP_NUM_THREADS=$(($(nproc) / NPROC_PER_NODE))
  [ "$OMP_NUM_THREADS" -ge 1 ] || OMP_NUM_THREADS=1
  export OMP_NUM_THREADS
fi

# Models and data sets of the hub live below HF_HOME (default ~/.cache/huggingface). On a cluster, name a folder that
# all nodes share, fetch once on a machine with internet (python data/prepare.py ...), and keep compute nodes offline:
# export HF_HOME=/shared/huggingface HF_HUB_OFFLINE=1
