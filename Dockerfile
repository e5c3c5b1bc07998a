# The artifact in a container. `docker build -t finemoe .` installs it; `mkdir -p out` and then
# `docker run --rm -v "$PWD/out:/home/finemoe/out" finemoe` regenerate every figure and table and copy them to out/.
FROM python:3.11-slim-bookworm

# Debian keeps no old versions of packages, so that pinned ones would stop the build after every update of theirs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 finemoe \
    && install --directory --owner=1000 --group=1000 /home/finemoe/artifact

USER 1000:1000
WORKDIR /home/finemoe/artifact
ENV HOME=/home/finemoe \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1

# The environment depends on few files, so that a change of a page or test does not install it again. pip may fetch
# PyTorch's CUDA build, which is several GB larger; the CPU build is enough.
COPY --chown=1000:1000 requirements.lock pyproject.toml README.md LICENSE Makefile ./
COPY --chown=1000:1000 finemoe ./finemoe
COPY --chown=1000:1000 data ./data
RUN make install

COPY --chown=1000:1000 . .

# Neither needs a network any more.
CMD ["sh", "-c", "make reproduce && mkdir -p ../out && cp -r figures results/notebooks ../out/"]
