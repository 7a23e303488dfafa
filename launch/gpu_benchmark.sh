#!/usr/bin/env bash
# Measures the training step on the GPU of a bare machine, offline: python3 with jax, flax, optax,
# orbax-checkpoint, absl-py and torch is enough. WHEELS=DIR hands it pure wheels for the rest
# (dynamic-network-architectures and nnunetv2, for the times beside PyTorch's nnU-Net).
#   bash launch/gpu_benchmark.sh --output=DIR [--budget=480] [--only=REGEX] [--dry_run]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --target "$unpacked" "$WHEELS"/*.whl
  export PYTHONPATH="$unpacked${PYTHONPATH:+:$PYTHONPATH}"
fi
# PyTorch runs in the same process, so JAX must not take the whole memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
"$python" -m benchmarks.gpu "$@"
