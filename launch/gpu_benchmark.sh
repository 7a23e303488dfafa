#!/usr/bin/env bash
# Measures training and prediction on the GPU of a bare machine, offline: python3 with jax, flax,
# optax, absl-py, scipy and torch is enough. WHEELS=DIR hands it wheels for the rest: grain for the
# input pipeline; nnunetv2, dynamic-network-architectures, batchgenerators, batchgeneratorsv2 and
# acvl_utils for what stands beside PyTorch's nnU-Net.
#   bash launch/gpu_benchmark.sh --output=DIR [--budget=840] [--only=REGEX] [--dry_run]
set -euo pipefail
begun=$(date +%s)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if [ -n "${WHEELS:-}" ]; then
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --target "$unpacked" "$WHEELS"/*.whl
  export PYTHONPATH="$unpacked${PYTHONPATH:+:$PYTHONPATH}"
fi
# PyTorch runs in the same process, so JAX must not take the whole memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
"$python" -m benchmarks.gpu --begun="$begun" "$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT HUP
status=0
wait "$child" || status=$?
while kill -0 "$child" 2>/dev/null; do wait "$child" || status=$?; done # it stops its parts
exit "$status"
