#!/usr/bin/env bash
# Measures training and prediction on the GPU of a bare machine, offline: python3 with jax, flax,
# optax, absl-py, scipy and torch is enough. WHEELS=DIR hands it wheels for the rest: grain for the
# input pipeline; nnunetv2, dynamic-network-architectures, batchgenerators, batchgeneratorsv2 and
# acvl_utils for what stands beside PyTorch's nnU-Net.
#   bash launch/gpu_benchmark.sh --output=DIR [--budget=840] [--only=REGEX] [--dry_run]
begun=$(date +%s)
source "$(dirname "${BASH_SOURCE[0]}")/bare.sh"
# PyTorch runs in the same process, so JAX must not take the whole memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
until_it_ends "$python" -m benchmarks.gpu --begun="$begun" "$@"
