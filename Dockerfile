# The command line in a container, for a user that is not root. docs/install.md shows how to build and run it.
#
# BASE: any image of Debian or Ubuntu. Python 3.11 or newer is installed where it has none.
# TORCH_INDEX: PyTorch without CUDA, or with it: https://pypi.org/simple. PyTorch brings CUDA's libraries itself.
# EXTRAS: extras of pyproject.toml, separated by commas.
ARG BASE=python:3.11-slim

FROM ${BASE} AS system
# libgomp1: LightGBM's threads. Versions are the base's, which is an argument.
# hadolint ignore=DL3008,SC2086
RUN set -eu; \
    packages=libgomp1; \
    command -v python3 >/dev/null || packages="$packages python3 python3-venv"; \
    apt-get update; \
    apt-get install --yes --no-install-recommends $packages; \
    rm -rf /var/lib/apt/lists/*
# The owner of mounted folders. Ubuntu's images have a user 1000 already.
ARG USER_ID=1000
RUN useradd --non-unique --uid "$USER_ID" --create-home l2g

# For .devcontainer: make and git; the environment is built in the checkout.
FROM system AS dev
# hadolint ignore=DL3008
RUN set -eu; \
    apt-get update; \
    apt-get install --yes --no-install-recommends git make; \
    rm -rf /var/lib/apt/lists/*
# hadolint ignore=DL3066
USER l2g

FROM system
ENV PATH=/opt/l2g/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    GIT_PYTHON_REFRESH=quiet
RUN python3 -m venv /opt/l2g
WORKDIR /src
# From what changes least to what changes most: PyTorch, other packages, l2g-ray.
COPY constraints.txt ./
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --extra-index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY LICENSE README.md pyproject.toml setup.py ./
COPY l2g_ray/__init__.py l2g_ray/
ARG EXTRAS=demo,server
RUN pip install --constraint constraints.txt ".[$EXTRAS]"
COPY l2g_ray l2g_ray
RUN pip install --no-deps --force-reinstall .
WORKDIR /work
RUN chown l2g /work
# hadolint ignore=DL3066
USER l2g
ENTRYPOINT ["l2g-ray"]
CMD ["--help"]
