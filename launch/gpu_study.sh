#!/usr/bin/env bash
# Runs the study of configs/covid19_gpu.py on the GPU of a bare machine, offline, for BUDGET seconds,
# and brings back what was done by then. WHEELS=DIR hands it wheels of what python3 lacks of
# pyproject.toml's packages; SimpleITK may be missing.
#   bash launch/gpu_study.sh --output=DIR [--budget=600] [--workdir=STUDY] [flags of covid_jax.study]
# DIR gets results.json, study.txt (what was printed), report.tar.gz (the page, tables and figures) and
# runs.tar.gz (config, log, metrics and device of every run, and what each step printed). With a
# --workdir that stays the same command goes on. The status is 124 where time ran out.
begun=$(date +%s)
source "$(dirname "${BASH_SOURCE[0]}")/bare.sh"
# A worker that starts after the GPU is lost must not go on without; the CPU draws initial weights.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
output="" budget=600 workdir="$unpacked/study" flags=()
for argument in "$@"; do
  case "$argument" in
    --output=*) output=${argument#*=} ;;
    --budget=*) budget=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    *) flags+=("$argument") ;;
  esac
done
[ -n "$output" ] || { echo "error: --output is missing" >&2; exit 2; }
mkdir -p "$output" "$workdir"
output=$(realpath "$output")

status=0
left=$((budget - 60 - $(date +%s) + begun)) # a minute is for saving, the report and the files
until_it_ends timeout --signal=TERM "$((left > 1 ? left : 1))" \
  "$python" -u -m covid_jax.study --config=configs/covid19_gpu.py --workdir="$workdir" --jobs=4 \
  ${flags[@]+"${flags[@]}"} > >(tee "$output/study.txt") 2>&1 || status=$?
if [ "$status" != 0 ]; then # else the study has drawn its report
  "$python" -m covid_jax.study --workdir="$workdir" --report_only ||
    echo "time was too short for a report"
fi
cd "$workdir"
if [ -f report/results.json ]; then
  cp report/results.json "$output"
  tar -czf "$output/report.tar.gz" --exclude=viewer report
fi
find . -path './steps/*' -type f -o -name config.json -o -name log.jsonl -o -name metrics.json \
  -o -name provenance.json -o -name study.json | tar -czf "$output/runs.tar.gz" --files-from=-
exit "$status"
