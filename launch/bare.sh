# Sourced by what runs on a GPU's bare machine, offline: the Python that is there, in the project's
# root; WHEELS=DIR hands it wheels of what that lacks, which are unpacked beside it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --target "$unpacked" "$WHEELS"/*.whl
  export PYTHONPATH="$unpacked${PYTHONPATH:+:$PYTHONPATH}"
fi

# Runs a command until it ends, and hands it the signals that would end this script.
until_it_ends() {
  "$@" &
  local child=$! status=0
  # shellcheck disable=SC2064
  trap "kill -TERM $child 2>/dev/null" TERM INT HUP
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child" || status=$?; done # it stops its parts
  return "$status"
}
