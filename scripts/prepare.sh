#!/usr/bin/env bash
# Makes .venv ready: prepare.sh check | demo | test. The Makefile calls it before anything else.
#
#   check  looks at the machine and names the Debian or Fedora package that is missing
#   demo   installs as a user does, with build isolation; CUDA kernels only where there is a GPU
#   test   installs as a developer does: build tools in .venv, a build folder that is kept, CUDA kernels wherever they can
#          be compiled
#
# Nothing is done twice: .venv/installed says from which sources what was installed. PYTHON chooses another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-2}"
export PIP_DISABLE_PIP_VERSION_CHECK=1
purpose="${1:?prepare.sh check, demo or test}"
venv=.venv
toolchain=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85)
cutlass=nvidia-cutlass==4.2.0.0

say() { printf 'glm5_ops: %s\n' "$*"; }

# The machine

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# The first that is new enough and complete, else the first that is new enough.
find_python() {
  local name first=
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python3.14}; do
    is_new_enough "$name" || continue
    first="${first:-$name}"
    if [ -z "$(what_python_lacks "$name")" ]; then
      first="$name"
      break
    fi
  done
  echo "$first"
}

what_python_lacks() {
  "$1" - <<'PY'
import importlib.util, pathlib, sys, sysconfig

name = f"python3.{sys.version_info[1]}"
if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
    print(f"Python.h of {sys.executable} is missing: apt install {name}-dev (Debian, Ubuntu) or dnf install python3-devel (Fedora)")
if not all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")):
    print(f"venv of {sys.executable} is missing: apt install {name}-venv (Debian, Ubuntu) or dnf install python3 (Fedora)")
PY
}

what_the_compiler_lacks() {
  local compiler="${CXX:-c++}" folder
  if ! command -v "$compiler" >/dev/null; then
    echo "a C++ compiler ($compiler) is missing: apt install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora)"
    return
  fi
  folder="$(mktemp -d)"
  printf '#include <span>\n#include <type_traits>\nstruct Size { int rows; };\ntemplate <auto value> constexpr int of = value;\n' \
    >"$folder/probe.cpp"
  printf 'int main() { return Size{.rows = of<0>}.rows; }\n' >>"$folder/probe.cpp"
  local flags=(-std=c++20)
  if [ "$(uname -m)" = x86_64 ]; then
    flags+=(-mavx512vbmi -mamx-tile -mamx-bf16)
  fi
  if ! "$compiler" "${flags[@]}" -c "$folder/probe.cpp" -o "$folder/probe.o" 2>/dev/null; then
    echo "the C++ compiler ($compiler) is too old for C++20 or for AMX: gcc 11 or clang 14 is needed;" \
      "apt install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora), or name another one with CXX"
  fi
  rm -r "$folder"
}

check_machine() {
  if [ "$(uname -s)" != Linux ]; then
    say "this Makefile is for Linux; elsewhere 'pip install .' builds the portable kernels"
    exit 1
  fi
  python="$(find_python)"
  local missing
  if [ -z "$python" ]; then
    missing="Python 3.10 or later is missing: apt install python3 python3-dev python3-venv (Debian, Ubuntu) or dnf install python3 python3-devel (Fedora)"
  else
    missing="$(what_python_lacks "$python")"
  fi
  missing="$missing$(what_the_compiler_lacks | sed '1s/^/\n/')"
  missing="$(printf '%s' "$missing" | sed '/^$/d')"
  if [ -n "$missing" ]; then
    printf '%s\n' "$missing" | while read -r line; do say "$line"; done
    exit 1
  fi
}

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }
has_nvcc() { command -v "${CUDACXX:-nvcc}" >/dev/null; }

# The virtual environment

pip() { "$venv/bin/python" -m pip --quiet "$@"; }

make_venv() {
  if ! is_new_enough "$venv/bin/python"; then
    rm -rf "$venv"
    say "making $venv with $python"
    "$python" -m venv "$venv"
  fi
}

cpu_wheels_of_torch_answer() {
  "$venv/bin/python" -c '
import urllib.request
urllib.request.urlopen("https://download.pytorch.org/whl/cpu/torch/", timeout=8).read(1)' 2>/dev/null
}

# On Linux the torch of PyPI brings gigabytes of CUDA libraries, of use only with a GPU. The builds without them are called
# +cpu; a mirror may have one, PyTorch's own index has all.
install_torch() {
  if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    return
  fi
  say "installing torch"
  if has_gpu; then
    pip install 'torch>=2.6'
  elif pip install torch==2.13.0+cpu >/dev/null 2>&1; then
    :
  elif cpu_wheels_of_torch_answer; then
    pip install --timeout 30 --retries 2 --index-url https://download.pytorch.org/whl/cpu 'torch>=2.6'
  else
    say "no CPU build of torch can be reached; taking the one with CUDA, which is large"
    pip install 'torch>=2.6'
  fi
}

fingerprint() {
  {
    find csrc cmake python bench pyproject.toml CMakeLists.txt README.md LICENSE scripts/prepare.sh -type f \
      ! -path '*/__pycache__/*' ! -path 'bench/results/*' -print0 | sort -z | xargs -0 sha256sum
    "$venv/bin/python" --version
    has_gpu && echo gpu || true
    has_nvcc && echo nvcc || true
  } | sha256sum | cut -d ' ' -f 1
}

# What was tested serves the demo too.
is_installed() {
  local from for_what
  [ -f "$venv/installed" ] || return 1
  read -r from for_what <"$venv/installed"
  [ "$from" = "$1" ] && { [ "$for_what" = "$purpose" ] || [ "$for_what" = test ]; }
}

install_for_demo() {
  local cuda=OFF
  if has_gpu; then
    cuda="$(has_nvcc && echo ON || echo wheels)"
  fi
  say "building and installing glm5_ops (CUDA kernels: $cuda)"
  GLM5_OPS_CUDA="$cuda" pip install --force-reinstall --no-deps .
}

# The CUDA toolchain into .venv; the system's nvcc needs only the headers. --no-deps: nvidia-cutlass's Python is not used.
install_toolchain() {
  local wanted=("$cutlass")
  if ! has_nvcc; then
    say "no nvcc on PATH: taking the toolchain from PyPI"
    wanted+=("${toolchain[@]}")
  fi
  pip install --no-deps "${wanted[@]}"
}

# Without a GPU the kernels are compiled for the emulator, by the tests that need it; a module that has them is built by
# the slow tests of packaging.
install_for_test() {
  local cuda=OFF
  pip install 'scikit-build-core>=1.0' 'nanobind>=3.1' 'nanobind-backend>=1.0' 'cmake>=3.24' 'ninja>=1.11'
  if ! install_toolchain; then
    say "NOT RUN HERE: nothing of CUDA is compiled or tested, because its toolchain could not be installed"
  elif has_gpu; then
    cuda=ON
  fi
  say "building and installing glm5_ops (CUDA kernels: $cuda)"
  GLM5_OPS_CUDA="$cuda" pip install --no-build-isolation --force-reinstall --no-deps .
}

requirements_of() {
  "$venv/bin/python" - "$@" <<'PY'
import pathlib, re, sys

# tomllib came with Python 3.11; these lists hold nothing but strings
text = pathlib.Path("pyproject.toml").read_text()
for extra in sys.argv[1:]:
    body = re.search(rf"^{extra} = \[(.*?)\]$", text, re.M | re.S)[1]
    print("\n".join(re.findall(r'"([^"]+)"', body)))
PY
}

# The interpreter of AVX-512 and AMX has no wheel for some Pythons; its tests say so.
install_requirements() {
  requirements_of dependencies "$@" >"$venv/requirements.txt"
  grep -v bochscpu "$venv/requirements.txt" >"$venv/needed.txt"
  pip install -r "$venv/needed.txt"
  if grep bochscpu "$venv/requirements.txt" >"$venv/optional.txt"; then
    pip install --only-binary :all: -r "$venv/optional.txt" 2>/dev/null ||
      say "NOT RUN HERE: instruction sets that this processor lacks; there is no wheel of bochscpu-python for this Python"
  fi
}

check_machine
if [ "$purpose" = check ]; then
  say "$("$python" --version), Python.h, venv and $("${CXX:-c++}" --version | head -n 1): all there"
  exit 0
fi
make_venv
now="$(fingerprint)"
if is_installed "$now"; then
  exit 0
fi
install_torch
if [ "$purpose" = test ]; then
  install_requirements cli test
  install_for_test
else
  install_requirements cli
  install_for_demo
fi
echo "$now $purpose" >"$venv/installed"
