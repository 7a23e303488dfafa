# Sourced by the scripts here: makes .venv in the project's root and installs what EXTRAS names, or
# else what the script asks for ($1) and, on a machine with an NVIDIA driver, the extra that fits it.
# Safe to run again: it installs only when pyproject.toml or the constraints have changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Another environment that is active must not leak into this one.
unset VIRTUAL_ENV PYTHONHOME PYTHONPATH

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3 python; do
    if [ -n "$candidate" ] &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer with venv; install one, or name it: PYTHON=/path/to/python" >&2
  return 1
}

pip() { # of .venv; says what fails, and nothing of its registries
  .venv/bin/python -m pip --quiet --quiet --disable-pip-version-check "$@"
}

if [ -z "${EXTRAS:-}" ]; then
  gpu=$(bash launch/gpu_extra.sh)
  EXTRAS=$1${gpu:+,$gpu}
fi
stamp=".venv/.installed-$EXTRAS"
if ! { [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null; }; then
  rm -rf .venv
  python=$(find_python)
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi
wanted=$(cat pyproject.toml constraints.txt requirements/*.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing covid_jax with $EXTRAS, about half a minute"
  for extra in ${EXTRAS//,/ }; do
    if [ -f "requirements/$extra.txt" ]; then # whose files are known by their hashes
      pip install --require-hashes --no-deps --requirement "requirements/$extra.txt"
    fi
  done
  pip install --constraint constraints.txt --editable ".[$EXTRAS]"
  # JAX loads each plugin that it finds: none of another CUDA may stay.
  for extra in cuda:13 cuda12:12; do
    plugin=jax-cuda${extra#*:}
    if [[ ",$EXTRAS," != *",${extra%:*},"* ]] &&
      pip show "$plugin-plugin" 2>/dev/null; then
      pip uninstall --yes "$plugin-plugin" "$plugin-pjrt"
      rm -f .venv/.installed-* # who asked for it has it no more
    fi
  done
  echo "$wanted" > "$stamp"
fi
