"""Programs as nvcc builds them: fat binaries, the <<<>>> launch, printf, assert, memory, the driver's library."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from tests.emulator.build import RUNTIME, build, nvcc_path
from tests.emulator.device import library

SOURCE = r"""
#include <cassert>
#include <cstdio>
#include <cuda_runtime.h>

__constant__ int offset = 5;
__device__ int counter;

__device__ __noinline__ int collatz(int n) {
  int steps = 0;
  for (; n != 1; ++steps) n = n % 2 ? 3 * n + 1 : n / 2;
  return steps;
}

__global__ void add(int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = collatz(i + 1) + offset;
  atomicAdd(&counter, 1);
}

__global__ void say(int n) {
  assert(n < 3);
  if (threadIdx.x == 1) printf("%d %.2f %s 100%%\n", n, 0.5 * n, "words");
}

extern "C" {

int run(int* out, int n, int blocks) {
  int *device, zero = 0;
  if (cudaMalloc(&device, n * sizeof(int)) != cudaSuccess) return -1;
  cudaMemcpyToSymbol(counter, &zero, sizeof(int));
  add<<<blocks, 64>>>(device, n);
  if (cudaGetLastError() != cudaSuccess) return -2;
  cudaMemcpy(out, device, n * sizeof(int), cudaMemcpyDeviceToHost);
  cudaFree(device);
  int counted = 0;
  cudaMemcpyFromSymbol(&counted, counter, sizeof(int));
  return counted;
}

int talk(int n) {
  say<<<1, 32>>>(n);
  return static_cast<int>(cudaGetLastError());
}

int set_beyond() {
  int* device;
  cudaMalloc(&device, 100);
  int status = cudaMemset(device, 0, 101);
  cudaFree(device);
  return status;
}

int free_twice() {
  int* device;
  cudaMalloc(&device, 100);
  cudaFree(device);
  return cudaFree(device);
}

int multiprocessors() {
  int count = 0;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0);
  return count;
}

}
"""
PTX = "arch=compute_90a,code=compute_90a"


def compile_program(folder: Path, name: str, generate: str, *flags: str) -> Path:
    source, made = folder / f"{name}.cu", folder / f"{name}.so"
    source.write_text(SOURCE)
    options = ["-shared", "-Xcompiler", "-fPIC", "-cudart", "none", "-gencode", generate, *flags]
    command = [nvcc_path(), *options, str(source), "-o", str(made), f"-L{build()}", f"-l:{RUNTIME}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return made


def load(path: Path) -> ctypes.CDLL:
    library()  # by whose name the program asks for it
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return load(compile_program(tmp_path_factory.mktemp("program"), "program", PTX))


def sentence() -> str:
    return library().glm5_emulator_sentence().decode()


def collatz(n: int) -> int:
    steps = 0
    while n != 1:
        n, steps = 3 * n + 1 if n % 2 else n // 2, steps + 1
    return steps


def check_run(program: ctypes.CDLL) -> None:
    out = (ctypes.c_int * 200)()
    assert program.run(out, 200, 4) == 200, sentence()
    assert list(out) == [collatz(i + 1) + 5 for i in range(200)]


def test_a_launch_through_the_runtime(program):
    check_run(program)


@pytest.mark.parametrize("mode", ["none", "speed"])
def test_other_ways_of_packing(tmp_path, mode):
    check_run(load(compile_program(tmp_path, mode, PTX, f"--compress-mode={mode}")))


def test_copying_what_no_kernel_wrote_is_no_fault(program):
    assert program.run((ctypes.c_int * 200)(), 200, 1) == 64


def test_printf(program, capfd):
    assert program.talk(2) == 0
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "2 1.00 words 100%\n"


def test_assert(program):
    assert program.talk(3) == 710
    assert "n < 3" in sentence() and "program.cu" in sentence()


def test_misuse_of_memory_functions(program):
    assert program.set_beyond() != 0 and "101 bytes" in sentence()
    assert program.free_twice() != 0 and "freed before" in sentence()


def test_the_device_is_an_h200(program):
    assert program.multiprocessors() == 132


@pytest.mark.parametrize(("generate", "words"), [("arch=compute_80,code=compute_80", "sm_80"),
                                                 ("arch=compute_90a,code=sm_90a", "no PTX")])  # fmt: skip
def test_a_program_without_the_right_ptx_is_refused(tmp_path, generate, words):
    program = load(compile_program(tmp_path, "other", generate))
    assert program.run((ctypes.c_int * 4)(), 4, 1) < 0
    assert words in sentence()
