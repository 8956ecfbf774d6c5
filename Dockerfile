# The image of every start in a container.
#   docker build --target cpu -t yarn-train:cpu .       what a laptop or CI runs
#   docker build --target gpu -t yarn-train:gpu \
#     --build-arg REVISION="$(git describe --always --abbrev=40 --dirty=+dirty --exclude '*')" .
#                                                       CUDA; no compiler inside. Runs record the revision, as the
#                                                       image has no history to ask
#   docker build --target gpu-jit -t yarn-train:gpu .   the same and a C compiler, which Triton runs for compile.enabled,
#                                                       memory.loss=fused and optim.state=8bit
#   docker run --network none yarn-train:cpu make train                             the quickstart, offline
#   docker run --gpus all --ipc host -v "$PWD/outputs:/app/outputs" yarn-train:gpu launch/torchrun.sh experiment=...
#   docker stop -t 600 CONTAINER                                                    saves after the step at hand
# Folders of the host that are mounted must be writable by user 10001, or add --user "$(id -u):$(id -g)".
# Plain BuildKit features only, hence no syntax line: it would fetch one more image on every build.

# Digests make a rebuild the same build; Docker ignores a tag beside a digest, it is there to be read. Renew one with
#   docker buildx imagetools inspect python:3.12-slim-trixie --format '{{.Manifest.Digest}}'
ARG PYTHON_IMAGE=python:3.12.14-slim-trixie@sha256:2fe5997d249a808b8eeea52c58a1dbffbba28754dc11699ef5c029f2d818ce79
# torch's wheels bring cuBLAS, cuDNN and NCCL of their own, so the runtime needs the small "base" image only. The build
# image must have the CUDA of those wheels: flash-attn is compiled with it.
ARG CUDA_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04@sha256:7c7413a56200486f71f181cad9310f6fd31b6bb21816ade15fc9c1e1e927a5c1
ARG CUDA_BUILD_IMAGE=nvidia/cuda:13.0.3-cudnn-devel-ubuntu24.04@sha256:0230b7f243483cb15969fa3cc724a9459599604427052fc2a0d4291c7c0647dd
# Of the GPU images' Ubuntu; the CPU image has the Python of its base.
ARG PYTHON_VERSION=3.12
ARG TORCH_VERSION=2.13.0


FROM ${PYTHON_IMAGE} AS cpu-build
ARG TORCH_VERSION
# PyPI's torch for Linux brings 4 GB of CUDA; "+cpu" exists on this index only, so it cannot slip in.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
# What takes long comes first and from the ARGs alone: an edited dependency must not install torch again. setuptools
# builds the project, see pyproject.toml.
RUN python3 -m venv .venv \
    && .venv/bin/pip install --extra-index-url "${TORCH_CPU_INDEX}" "torch==${TORCH_VERSION}+cpu" "setuptools>=77"
# What the project depends on, but not its source: an edited line of code must not install everything again.
COPY pyproject.toml constraints.txt ./
RUN sed -i "s/^torch==.*/torch==${TORCH_VERSION}/" constraints.txt \
    && .venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && .venv/bin/pip install -c constraints.txt -r requirements.txt


FROM ${PYTHON_IMAGE} AS cpu
# make starts the quickstart, launch/torchrun.sh finds its workers with ps (procps). tini is process 1: it reaps what
# dead workers leave and passes signals on, while a process 1 without handlers of its own would ignore them, and any
# command may be run in this image.
# Debian deletes old versions from its mirrors, so that a pinned one breaks the build within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make procps tini \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY --from=cpu-build /app/.venv .venv
COPY . .
# The fixed number is for mounted volumes; LOGNAME below is for another number (--user), which has no name to look up.
# .installed tells the Makefile that nothing is left to install: without a network it could not.
RUN .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && touch .venv/.installed \
    && groupadd --gid 10001 trainer \
    && useradd --uid 10001 --gid 10001 --no-log-init --home-dir /cache --no-create-home trainer \
    && install -d -o trainer -g trainer -m 0775 outputs data/cache \
    && install -d -o trainer -g trainer -m 1777 /cache
# Everything that is written lies in a volume, so that the root file system may be read-only (with a /tmp).
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    LOGNAME=trainer \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/cache/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton
VOLUME ["/app/outputs", "/app/data/cache", "/cache"]
USER 10001:10001
# launch/torchrun.sh answers it by saving a checkpoint; give it time: docker stop -t 600.
STOPSIGNAL SIGTERM
# A run that cannot write cannot save. Whether steps advance is in metrics.jsonl: no limit on a step's time fits all.
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s --retries=3 \
    CMD ["sh", "-c", "f=outputs/.healthy.$$ && echo ok > $f && rm $f && test -w data/cache"]
ENTRYPOINT ["tini", "--"]
CMD ["launch/torchrun.sh"]
# Last: they change with every commit, and a layer after them would be built again.
ARG VERSION=0.1.0
ARG REVISION=""
ENV YARN_TRAIN_REVISION=${REVISION}
LABEL org.opencontainers.image.title="yarn-train" \
      org.opencontainers.image.description="Distributed continued pretraining with YaRN (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


FROM ${CUDA_BUILD_IMAGE} AS gpu-build
ARG PYTHON_VERSION
ARG TORCH_VERSION
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Ubuntu deletes old versions from its mirrors, so that a pinned one breaks the build within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential "python${PYTHON_VERSION}-dev" "python${PYTHON_VERSION}-venv" \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
# Empty: PyPI, whose torch 2.13.0 is built for CUDA 13.0. For another CUDA name torch's index for it, such as
# https://download.pytorch.org/whl/cu126, and both CUDA images.
ARG TORCH_CUDA_INDEX=""
# Torch and flash-attn come from the ARGs alone: an edited dependency must not compile flash-attn again. setuptools
# builds it and the project, see pyproject.toml.
RUN "python${PYTHON_VERSION}" -m venv .venv \
    && .venv/bin/pip install ${TORCH_CUDA_INDEX:+--extra-index-url "${TORCH_CUDA_INDEX}"} "torch==${TORCH_VERSION}" "setuptools>=77"
# One of the two: the URL of a wheel for exactly this torch, CUDA and Python, or a version that is compiled here. An empty
# version leaves flash-attn out (attention is then cuDNN's or torch's own). One compiler job holds about 5 GB while the
# kernels of one architecture are compiled, so MAX_JOBS is memory, not cores.
ARG FLASH_ATTN_WHEEL=""
ARG FLASH_ATTN_VERSION=2.8.3.post2
# A100 and H100; add 100;120 for Blackwell. Compiling takes as many times longer.
ARG FLASH_ATTN_CUDA_ARCHS="80;90"
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0"
ARG MAX_JOBS=4
ARG NVCC_THREADS=2
RUN if [ -n "${FLASH_ATTN_WHEEL}" ]; then \
        .venv/bin/pip install "torch==${TORCH_VERSION}" "${FLASH_ATTN_WHEEL}"; \
    elif [ -n "${FLASH_ATTN_VERSION}" ]; then \
        .venv/bin/pip install ninja packaging psutil wheel \
        && FLASH_ATTENTION_FORCE_BUILD=TRUE .venv/bin/pip install --no-build-isolation \
            --no-binary flash-attn "torch==${TORCH_VERSION}" "flash-attn==${FLASH_ATTN_VERSION}"; \
    fi
COPY pyproject.toml constraints.txt ./
RUN sed -i "s/^torch==.*/torch==${TORCH_VERSION}/" constraints.txt \
    && .venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && .venv/bin/pip install -c constraints.txt -r requirements.txt


FROM ${CUDA_IMAGE} AS gpu
ARG PYTHON_VERSION
# NCCL opens the libraries of InfiniBand when it finds them and is several times slower over TCP when it does not.
# Ubuntu deletes old versions from its mirrors, so that a pinned one breaks the build within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates ibverbs-providers libibverbs1 librdmacm1 make \
        procps \
        "python${PYTHON_VERSION}" tini \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY --from=gpu-build /app/.venv .venv
COPY . .
RUN .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && touch .venv/.installed \
    && groupadd --gid 10001 trainer \
    && useradd --uid 10001 --gid 10001 --no-log-init --home-dir /cache --no-create-home trainer \
    && install -d -o trainer -g trainer -m 0775 outputs data/cache \
    && install -d -o trainer -g trainer -m 1777 /cache
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    LOGNAME=trainer \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/cache/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton
VOLUME ["/app/outputs", "/app/data/cache", "/cache"]
USER 10001:10001
STOPSIGNAL SIGTERM
# Containers lose their GPUs when the host's daemon reloads its units, and GPUs fall off the bus: nvidia-smi notices,
# needs no GPU memory and disturbs no step.
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s --retries=3 \
    CMD ["sh", "-c", "f=outputs/.healthy.$$ && echo ok > $f && rm $f && test -w data/cache && nvidia-smi -L > /dev/null"]
ENTRYPOINT ["tini", "--"]
CMD ["launch/torchrun.sh"]
ARG VERSION=0.1.0
ARG REVISION=""
ENV YARN_TRAIN_REVISION=${REVISION}
LABEL org.opencontainers.image.title="yarn-train" \
      org.opencontainers.image.description="Distributed continued pretraining with YaRN (CUDA)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


# Triton compiles a small C file for every kernel it launches, at run time and with the host's compiler.
FROM gpu AS gpu-jit
ARG PYTHON_VERSION
ARG LIGER_VERSION=0.8.5
ARG TORCHAO_VERSION=0.18.0
USER 0:0
# Ubuntu deletes old versions from its mirrors, so that a pinned one breaks the build within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev "python${PYTHON_VERSION}-dev" \
    && rm -rf /var/lib/apt/lists/* \
    && .venv/bin/pip install --no-cache-dir --no-deps "liger-kernel==${LIGER_VERSION}" "torchao==${TORCHAO_VERSION}"
USER 10001:10001
