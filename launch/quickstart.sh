#!/usr/bin/env bash
# Sets up .venv and runs the small study end to end, into runs/quickstart; at most 10 minutes on
# 2 cores. Run again, it goes on with what is missing. Flags of covid_jax.study may follow.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" onednn
exec .venv/bin/python -m covid_jax.study \
  --config=configs/quickstart.py --workdir=runs/quickstart --jobs=2 "$@"
