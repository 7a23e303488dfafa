#!/usr/bin/env bash
# Prints the extra of covid_jax that fits the NVIDIA driver of this machine: cuda (CUDA 13), cuda12,
# or nothing where there is no driver, or one too old for either. What it found goes to stderr.
#   bash launch/gpu_extra.sh
set -euo pipefail
driver=$( { nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null || true; } | head -n 1)
case "$driver" in
  "") exit 0 ;;
  [0-9]*) ;;
  *) echo "nvidia-smi fails ($driver): no extra for a GPU" >&2; exit 0 ;;
esac
# What NVIDIA asks for: https://docs.nvidia.com/deploy/cuda-compatibility
if [ "${driver%%.*}" -ge 580 ]; then extra=cuda
elif [ "${driver%%.*}" -ge 525 ]; then extra=cuda12
else
  echo "NVIDIA driver $driver is older than 525, which JAX needs: JAX will run on the CPU" >&2
  exit 0
fi
echo "NVIDIA driver $driver: extra $extra" >&2
echo "$extra"
