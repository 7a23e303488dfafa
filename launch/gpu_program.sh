#!/usr/bin/env bash
# Brings JAX's compiler for GPUs, which needs no GPU, and counts what the training step does there.
# It lies apart from .venv's packages: among them, JAX would look for a GPU's libraries at each start.
#   bash launch/gpu_program.sh --output=DIR    (benchmarks/gpu_program.py; with no flags it is fetched alone)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" onednn
if [ "$(uname -s)" != Linux ]; then
  echo "JAX has no compiler for CUDA on $(uname -s): what is compiled for a GPU is not tested" >&2
  exit "$(($# > 0))"
fi
version=$(.venv/bin/python -c 'from importlib.metadata import version; print(version("jaxlib"))')
place=.venv/gpu_program/$version
if [ ! -d "$place" ]; then
  echo "installing JAX's compiler for CUDA 13, 130 MB"
  rm -rf .venv/gpu_program
  pip install --no-deps --target "$place.partial" \
    "jax-cuda13-plugin==$version" "jax-cuda13-pjrt==$version"
  mv "$place.partial" "$place"
fi
[ $# = 0 ] || PYTHONPATH=$place exec .venv/bin/python -m benchmarks.gpu_program "$@"
