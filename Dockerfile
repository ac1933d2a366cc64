# An image with the package, for a CPU:
#   docker build --tag=vit_jax .
#   docker run --init --rm vit_jax
# for NVIDIA GPUs, on a host with the NVIDIA Container Toolkit:
#   docker build --tag=vit_jax:cuda --build-arg=EXTRA=cuda .
#   docker run --init --rm --gpus=all vit_jax:cuda
# docs/devices.md says how to use it with your own data.
FROM python:3.12-slim-bookworm

# Extras of setup.py: cuda, cuda12 (for drivers older than 580), or several, such as cuda,demo
ARG EXTRA=""

RUN --mount=type=bind,target=/src,rw --mount=type=cache,target=/root/.cache/pip \
    pip install --root-user-action=ignore --constraint=/src/constraints.txt "/src${EXTRA:+[$EXTRA]}"

# Data and caches go where results go, for every user, and stay if a folder is mounted there.
ENV HOME=/work
RUN useradd --uid=1000 --home-dir=/work --create-home vit
USER 1000
WORKDIR /work

# The quickstart, without a download: two minutes on two cores.
CMD ["python", "-m", "vit_jax.main", "--config=quickstart", "--workdir=runs/quickstart"]
