#!/usr/bin/env bash
# Writes requirements/*.txt: what CI installs, every file with its hash, as constraints.txt pins it.
# PyTorch, which only tests stand beside, is left out: its build depends on the machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$(command -v uv) || { echo "error: uv is missing: pip install uv" >&2; exit 1; }
for extra in dev peers; do
  compile=("$uv" pip compile pyproject.toml --extra "$extra" --constraint constraints.txt
    --universal --python-version 3.11 --no-header --no-annotate --quiet)
  left_out=$("${compile[@]}" | sed -nE 's/^(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*)==.*/--no-emit-package=\1/p')
  # shellcheck disable=SC2086
  "${compile[@]}" $left_out --generate-hashes --output-file "requirements/$extra.txt" > /dev/null
done
