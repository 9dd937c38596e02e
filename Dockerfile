# zoft on a CUDA base. It needs a driver for CUDA 13 (580 or newer) and NVIDIA's container toolkit:
#
#   docker build -t zoft .
#   docker run --rm --gpus all -v "$PWD:/home/zoft/work" zoft train recipe.yaml
#
# For the CPU alone, a much smaller image:
#
#   docker build --build-arg ZOFT_TORCH_INDEX=https://download.pytorch.org/whl/cpu \
#     --build-arg ZOFT_BASE=ubuntu:24.04 -t zoft .
#
# The run's folder appears in the mounted one, which user 1000 must be able to write to. Models are
# cached in /home/zoft/.cache: mount a volume there to keep them.
#
# The base image is the small one, for the toolkit's settings: torch brings its own CUDA libraries.
# bash scripts/check.sh lints this file with hadolint.
ARG ZOFT_BASE=nvidia/cuda:13.0.2-base-ubuntu24.04
# hadolint ignore=DL3006
FROM ${ZOFT_BASE}

# Triton compiles a small launcher with a C compiler and Python's headers when it first meets a GPU.
# Ubuntu's archive keeps only the newest packages of a release, so their versions cannot be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's own user has the number 1000.
RUN userdel --remove ubuntu \
    && useradd --uid 1000 --create-home zoft \
    && install -d -o zoft /home/zoft/work /home/zoft/.cache

# A layer of its own, for it is the largest, and a build of torch that later calls leave alone.
ARG ZOFT_TORCH_INDEX=""
ENV PATH=/opt/zoft/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
RUN python3 -m venv /opt/zoft \
    && pip install -c constraints.txt ${ZOFT_TORCH_INDEX:+--extra-index-url "$ZOFT_TORCH_INDEX"} torch

COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY zoft zoft
RUN pip install -c constraints.txt ".[quantization]"

USER 1000
WORKDIR /home/zoft/work
ENTRYPOINT ["zoft"]
CMD ["--help"]
