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

__global__ void __launch_bounds__(64) small(int* out) {
  extern __shared__ int shared[];
  out[threadIdx.x] = static_cast<int>(reinterpret_cast<unsigned long long>(shared));
}

int launch_small(int blocks, int threads, int shared_bytes, int cluster) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int* out;
  cudaMalloc(&out, 4096);
  int status = cudaLaunchKernelEx(&config, small, out);
  cudaFree(out);
  return status;
}

int allow(int shared_bytes, int large_clusters) {
  int status = cudaFuncSetAttribute(small, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  return status ? status : cudaFuncSetAttribute(small, cudaFuncAttributeNonPortableClusterSizeAllowed, large_clusters);
}

int multiprocessors() {
  int count = 0;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0);
  return count;
}

}
"""
PTX = "arch=compute_90a,code=compute_90a"


def compile_program(folder: Path, name: str, generate: str, *flags: str, source: str = SOURCE) -> Path:
    written, made = folder / f"{name}.cu", folder / f"{name}.so"
    written.write_text(source)
    options = ["-shared", "-Xcompiler", "-fPIC", "-cudart", "none", "-gencode", generate, *flags]
    command = [nvcc_path(), *options, str(written), "-o", str(made), f"-L{build()}", f"-l:{RUNTIME}"]
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


@pytest.mark.parametrize(("shape", "words"), [
    ((1, 65, 0, 1), "65 threads; it was compiled for at most 64"),
    ((1, 2000, 0, 1), "2000 threads per block; 1 to 1024"), ((0, 32, 0, 1), "0 blocks along x"),
    ((1, 32, 48 * 1024 + 1, 1), "49153 bytes of dynamic shared memory"),
    ((16, 32, 0, 16), "clusters of 16 blocks; at most 8"), ((3, 32, 0, 2), "no multiple of the cluster's 2"),
    ((32, 32, 0, 32), "clusters of 32 blocks"),
])  # fmt: skip
def test_launches_beyond_the_limits_are_refused(program, shape, words):
    assert program.allow(48 * 1024, 0) == 0
    assert program.launch_small(*shape) != 0 and words in sentence(), sentence()


def test_limits_that_were_raised(program):
    assert program.allow(227 * 1024, 1) == 0
    assert program.launch_small(16, 64, 227 * 1024, 16) == 0, sentence()
    assert program.allow(227 * 1024 + 1, 1) != 0 and "at most 232448" in sentence()
    assert program.launch_small(32, 32, 0, 32) != 0 and "clusters of 32 blocks" in sentence()


@pytest.mark.parametrize(("generate", "words"), [("arch=compute_80,code=compute_80", "sm_80"),
                                                 ("arch=compute_90a,code=sm_90a", "no PTX")])  # fmt: skip
def test_a_program_without_the_right_ptx_is_refused(tmp_path, generate, words):
    program = load(compile_program(tmp_path, "other", generate))
    assert program.run((ctypes.c_int * 4)(), 4, 1) < 0
    assert words in sentence()
