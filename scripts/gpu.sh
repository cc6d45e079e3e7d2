#!/usr/bin/env bash
# Everything that wants a GPU of compute capability 9.0, in one go: gpu.sh SITE OUT
#
#   SITE  a folder with an importable glm5_ops that has CUDA kernels (pip install --target SITE dist/cuda/*.whl, or .venv's)
#   OUT   where results go: state of the machine, test log, sanitizer log, verify.json, bench.json
#
# First correctness (tests, then compute-sanitizer on small cases), then verification of the large shapes, then times. What
# fails does not keep the rest from running; the exit status says whether anything did.
set -uo pipefail
cd "$(dirname "$0")/.."
site="$(realpath "${1:?SITE}")" out="${2:?OUT}"
mkdir -p "$out"
export PYTHONPATH="$site" PYTHONUNBUFFERED=1
python="${PYTHON:-python3}" failed=0

run() { # run NAME LIMIT COMMAND...: the output goes to OUT/NAME.log, its end to the terminal
  local name="$1" limit="$2"
  shift 2
  printf '== %s\n' "$name"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || { printf '%s failed or ran past %s s\n' "$name" "$limit" && failed=1; }
  tail -n "${LINES_SHOWN:-12}" "$out/$name.log"
}

{
  git rev-parse HEAD 2>/dev/null
  nvidia-smi
  nvidia-smi --query-gpu=name,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu --format=csv
} >"$out/machine.txt" 2>&1
run doctor 60 "$python" -m glm5_ops doctor
run tests 300 "$python" -m pytest -q -k cuda tests/ops
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    run "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m glm5_ops verify fp8_gemm --device cuda --case m=70,n=200,k=400
  done
else
  echo "compute-sanitizer is not on PATH: not run"
fi
run verify 400 "$python" -m glm5_ops verify --full --device cuda
run bench 580 "$python" -m glm5_ops bench --device cuda --json-file "$out/bench.json"
exit "$failed"
