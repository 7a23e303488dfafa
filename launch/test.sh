#!/usr/bin/env bash
# Sets up .venv and runs every check: style, types, tests; --all with the slow ones. Other arguments
# go to pytest.
# EXTRAS=dev leaves out PyTorch and nnU-Net, which are large; the tests beside them are then skipped.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev,peers
EXTRAS=$EXTRAS bash launch/gpu_program.sh
# On the CPU, wherever they run: several at once would share a GPU's memory.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile \
  --no-loadscope-reorder "$@"
