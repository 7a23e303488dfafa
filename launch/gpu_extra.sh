#!/usr/bin/env bash
# Prints the extra of covid_jax that fits the NVIDIA driver of this machine: cuda (CUDA 13), cuda12,
# or nothing where there is no driver, or one too old for either. What it found goes to stderr.
#   bash launch/gpu_extra.sh
set -euo pipefail
command -v nvidia-smi >/dev/null || exit 0
limit=$(command -v timeout >/dev/null && echo timeout 30 || true) # a driver may hang
told=$($limit nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1 || true)
driver=$(grep -oE -m 1 '^[[:space:]]*[0-9]+\.[0-9.]+[[:space:]]*$' <<<"$told" | tr -d '[:space:]' || true)
major=${driver%%.*}
# What NVIDIA asks for: https://docs.nvidia.com/deploy/cuda-compatibility
if [ -z "$driver" ]; then
  echo "nvidia-smi tells no driver (${told%%$'\n'*}): JAX will run on the CPU" >&2
elif [ "$major" -ge 580 ]; then
  echo "NVIDIA driver $driver: extra cuda" >&2
  echo cuda
elif [ "$major" -ge 525 ]; then
  echo "NVIDIA driver $driver: extra cuda12" >&2
  echo cuda12
else
  echo "NVIDIA driver $driver is older than 525, which JAX needs: JAX will run on the CPU" >&2
fi
