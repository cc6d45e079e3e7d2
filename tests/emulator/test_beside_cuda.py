"""The emulator shares a process with another CUDA runtime and driver, and neither meets the other's functions."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.build import ROOT, RUNTIME, build, nvcc_path

# Whoever is called here was not meant.
TRAP = '{{ fprintf(stderr, "the other library\'s {name} was called\\n"); abort(); }}'
CLIENT = "int cudaGetDevice(int*); int device_of_client() { int device = -1; cudaGetDevice(&device); return device; }"
RUN = """
import ctypes, sys
def other():
    libraries = [ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in {others}]
    assert ctypes.CDLL({client}).device_of_client() == 77
    return libraries
def emulated():
    from tests.emulator.__main__ import main
    assert main(["fp8_gemm", "--case", "m=16,n=128,k=128"]) == 0
{order}
print("both ran")
"""


def _compiler() -> str:
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))


def _link(folder: Path, name: str, source: str, *options: str) -> Path:
    (folder / f"{name}.c").write_text(source)
    command = [_compiler(), "-x", "c", "-shared", "-fPIC", str(folder / f"{name}.c"), "-o", str(folder / name)]
    done = subprocess.run([*command, "-x", "none", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / name


def _exported() -> list[str]:
    """The names of the emulator's functions that a CUDA runtime or driver has too."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", build() / RUNTIME], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
    return sorted(n for n in names if n.startswith(("cu", "__cuda")))


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Path]:
    """A runtime and a driver whose functions abort but for cudaGetDevice, and a library linked against the runtime."""
    folder, head = tmp_path_factory.mktemp("others"), "#include <stdio.h>\n#include <stdlib.h>\n"
    traps = {n: f"void {n}() {TRAP.format(name=n)}" for n in _exported()}
    assert {"cudaLaunchKernelExC", "__cudaRegisterFatBinary", "cuTensorMapEncodeTiled"} <= set(traps)
    traps["cudaGetDevice"] = "int cudaGetDevice(int* device) { *device = 77; return 0; }"
    (folder / "map").write_text("libcudart.so.13 { global: *; };")  # as NVIDIA's has it; its driver has no versions
    runtime = "\n".join(t for n, t in traps.items() if n.startswith(("cuda", "__cuda")))
    driver = "\n".join(t for n, t in traps.items() if n.startswith("cu") and not n.startswith("cuda"))
    names = {"runtime": "libcudart.so.13", "driver": "libcuda.so.1"}
    versions = ("-Wl,-soname,libcudart.so.13", f"-Wl,--version-script={folder / 'map'}")
    made = {
        "runtime": _link(folder, names["runtime"], head + runtime, *versions),
        "driver": _link(folder, names["driver"], head + driver, "-Wl,-soname,libcuda.so.1"),
    }
    made["client"] = _link(folder, "client.so", CLIENT, str(made["runtime"]), f"-Wl,-rpath,{folder}")
    return made


@pytest.mark.parametrize("order", ["other(); emulated()", "emulated(); other(); emulated()"])
def test_an_op_runs_beside_another_runtime(others, order):
    paths = [str(others["runtime"]), str(others["driver"])]
    script = RUN.format(others=paths, client=repr(str(others["client"])), order=order)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("both ran\n"), done.stdout + done.stderr


def test_the_module_asks_for_the_emulator_by_name():
    module = next(build().glob("_native_emulated*.so"))
    wanted = subprocess.run(["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True).stdout
    cuda = [line.split()[-1] for line in wanted.splitlines() if "cuda" in line]
    assert cuda and all(name.endswith("@GLM5_EMULATED_CUDART") for name in cuda), cuda
    # objects that gcc makes unique are one for the whole process: also for a CUDA build of the library
    defined = subprocess.run(["nm", "-D", "--defined-only", module], capture_output=True, text=True, check=True).stdout
    assert [line for line in defined.splitlines() if " u " in line] == []


MAIN = r"""
#include <cstdio>
#include <cuda.h>
#include <cuda_runtime.h>
__global__ void twice(int* x) { x[threadIdx.x] *= 2; }
int main() {
  int version = 0, host[32], *device;
  cuDriverGetVersion(&version);
  for (int i = 0; i < 32; ++i) host[i] = i;
  cudaMalloc(&device, sizeof host);
  cudaMemcpy(device, host, sizeof host, cudaMemcpyHostToDevice);
  twice<<<1, 32>>>(device);
  cudaMemcpy(host, device, sizeof host, cudaMemcpyDeviceToHost);
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  std::printf("%s %d %d\n", properties.name, host[31], version >= 13000);
}
"""


def test_a_program_linked_against_nvidias_names_runs_as_it_is(tmp_path):
    (tmp_path / "main.cu").write_text(MAIN)
    drop_in = build() / "drop_in"
    libraries = ["-cudart", "none", f"-L{drop_in}", "-l:libcudart.so.13", "-l:libcuda.so.1"]
    generate = ["-gencode", "arch=compute_90a,code=compute_90a"]
    command = [nvcc_path(), *generate, str(tmp_path / "main.cu"), "-o", str(tmp_path / "main"), *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True,
                          env={**os.environ, "LD_LIBRARY_PATH": str(drop_in)})  # fmt: skip
    assert done.stdout == "NVIDIA H200 (emulated) 62 1\n", done.stdout + done.stderr
