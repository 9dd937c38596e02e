# zoft on a small Python image. The default build of torch is PyPI's, with CUDA and several GB; for the CPU:
#
#   docker build --build-arg ZOFT_TORCH_INDEX=https://download.pytorch.org/whl/cpu -t zoft .
#   docker run --rm -v "$PWD:/home/zoft/work" zoft train recipe.yaml
#
# The run's folder appears in the mounted one, which user 1000 must be able to write to.
FROM python:3.11.14-slim-bookworm
ARG ZOFT_TORCH_INDEX=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY recipes recipes
COPY zoft zoft
RUN pip install --no-cache-dir -c constraints.txt \
    ${ZOFT_TORCH_INDEX:+--extra-index-url "$ZOFT_TORCH_INDEX"} .
RUN useradd --uid 1000 --create-home zoft && install -d -o zoft /home/zoft/work
USER zoft
WORKDIR /home/zoft/work
ENTRYPOINT ["zoft"]
CMD ["--help"]
