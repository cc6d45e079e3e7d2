"""Device functions as nvcc compiles them: through pointers, through virtual functions; and numbers of 128 bits."""

import ctypes

import numpy as np
import pytest

from tests.emulator.device import Fault, Module
from tests.emulator.doors import Array
from tests.emulator.ptx import HEAD, array_on_device, back
from tests.emulator.test_programs import PTX, compile_program, load, sentence

SOURCE = r"""
#include <cuda_runtime.h>

struct Shape {
  __device__ virtual int area(int) const = 0;
  __device__ virtual ~Shape() {}
};
struct Square : Shape {
  int side;
  __device__ explicit Square(int side) : side(side) {}
  __device__ __noinline__ int area(int more) const override { return side * side + more; }
};
struct Oblong : Shape {
  int a, b;
  __device__ Oblong(int a, int b) : a(a), b(b) {}
  __device__ __noinline__ int area(int less) const override { return a * b - less; }
};

__device__ __noinline__ int twice(int x) { return 2 * x; }
__device__ __noinline__ int square(int x) { return x * x; }
__device__ __noinline__ int negated(int x) { return -x; }
__device__ int (*table[4])(int) = {twice, square, negated, nullptr};

__global__ void call_pointers(int* out, const int* which) {
  const int i = threadIdx.x;
  out[i] = table[which[i]](i + 3);
}

__global__ void call_virtual(int* out, const int* which) {
  const int i = threadIdx.x;
  Square square(i);
  Oblong oblong(i, i + 2);
  const Shape* shape = which[i] ? static_cast<const Shape*>(&square) : &oblong;
  out[i] = shape->area(which[i] + i);
}

__global__ void multiply_wide(unsigned long long* out, const unsigned long long* in) {
  const int i = threadIdx.x;
  unsigned __int128 x = static_cast<unsigned __int128>(in[2 * i + 1]) << 64 | in[2 * i];
  x = x * x + x - (x >> 3);
  out[2 * i] = static_cast<unsigned long long>(x);
  out[2 * i + 1] = static_cast<unsigned long long>(x >> 64);
}

extern "C" int pointers(int* out, const int* which) { call_pointers<<<1, 96>>>(out, which); return cudaGetLastError(); }
extern "C" int virtuals(int* out, const int* which) { call_virtual<<<1, 96>>>(out, which); return cudaGetLastError(); }
extern "C" int wide(unsigned long long* out, const unsigned long long* in) {
  multiply_wide<<<1, 64>>>(out, in);
  return cudaGetLastError();
}
"""
RANDOM = np.random.default_rng(8)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return load(compile_program(tmp_path_factory.mktemp("calls"), "calls", PTX, source=SOURCE))


def call(program, function, source, out):
    given, made = Array(source, "in"), Array(out, "out", written=False)
    status = getattr(program, function)(ctypes.c_void_p(made.address), ctypes.c_void_p(given.address))
    values = made.values.copy()
    given.free(), made.free()
    return status, values


def test_each_lane_calls_the_function_that_its_pointer_names(program):
    which = RANDOM.integers(0, 3, 96).astype(np.int32)
    status, got = call(program, "pointers", which, np.zeros(96, np.int32))
    assert status == 0, sentence()
    x = np.arange(96) + 3
    np.testing.assert_array_equal(got, np.choose(which, [2 * x, x * x, -x]))


def test_a_null_pointer_is_no_function(program):
    which = np.full(96, 1, np.int32)
    which[70] = 3
    status, _ = call(program, "pointers", which, np.zeros(96, np.int32))
    assert status != 0 and "call through the pointer 0x0" in sentence() and "warp 2, lane 6" in sentence()


def test_virtual_functions(program):
    which = RANDOM.integers(0, 2, 96).astype(np.int32)
    status, got = call(program, "virtuals", which, np.zeros(96, np.int32))
    assert status == 0, sentence()
    i = np.arange(96)
    np.testing.assert_array_equal(got, np.where(which == 1, i * i + 1 + i, i * (i + 2) - i))


def test_numbers_of_128_bits(program):
    source = RANDOM.integers(0, 2**64, 128, dtype=np.uint64)
    source[:6] = 2**64 - 1
    status, got = call(program, "wide", source, np.zeros(128, np.uint64))
    assert status == 0, sentence()
    for i in range(64):
        x = int(source[2 * i + 1]) << 64 | int(source[2 * i])
        expected = (x * x + x - (x >> 3)) % 2**128
        assert int(got[2 * i + 1]) << 64 | int(got[2 * i]) == expected


POINTER = (
    HEAD + ".func (.param .b32 r) one(.param .b32 a) { .reg .b32 %r1; ld.param.b32 %r1, [a]; {inside}\n"
    "st.param.b32 [r], %r1; ret; }\n"
    ".visible .entry k(.param .u64 out) {\n.reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<3>;\n"
    "ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mov.u64 %rd2, one;\n{before}\n"
    "{{ .param .b32 x; .param .b32 y; st.param.b32 [x], %r1;\n"
    "p: .callprototype (.param .b32 _) _ (.param .{type} _);\n{call}\nld.param.b32 %r2, [y]; }}\n{after}\n"
    "mul.wide.u32 %rd3, %r1, 4; add.u64 %rd3, %rd1, %rd3; st.global.u32 [%rd3], %r2; ret;\n}}\n"
)


def run_pointer(call="call (y), %rd2, (x), p;", *, type="b32", inside="", before="", after=""):
    text = POINTER.replace("{ .reg .b32 %r1;", "{{ .reg .b32 %r1;").replace("ret; }\n", "ret; }}\n", 1)
    text = text.replace("(.param .u64 out) {\n", "(.param .u64 out) {{\n")
    out = array_on_device(np.zeros(32, np.uint32))
    Module(text.format(call=call, type=type, inside=inside, before=before, after=after)).launch("k", [out])
    return back(out, np.uint32)


def test_calls_through_pointers_in_ptx():
    np.testing.assert_array_equal(run_pointer(inside="add.u32 %r1, %r1, 5;"), np.arange(32) + 5)


@pytest.mark.parametrize(
    ("options", "check", "words"),
    [
        ({"type": "b64"}, "control", "no function with the signature"),
        ({"call": "call (y), %rd2, (x);"}, "instruction", "needs a .callprototype"),
        ({"call": "call (y), %rd2, (x), q;"}, "instruction", "needs a .callprototype"),
        ({"call": "call (y), nowhere, (x);"}, "instruction", "calls nowhere, which is defined nowhere"),
        ({"before": "mov.u64 %rd2, %rd1;"}, "control", "no function with the signature"),
        ({"before": "ld.global.u32 %r5, [%rd2];"}, "bounds", "which is no device address"),
        ({"before": "add.cc.u32 %r5, %r1, %r1;", "after": "addc.u32 %r2, %r2, 0;"}, "uninitialised", "a carry"),
        (
            {"before": "add.cc.u32 %r5, %r1, %r1;", "inside": "addc.u32 %r1, %r1, 0;"},
            "uninitialised",
            "a carry",
        ),
    ],
)
def test_calls_that_are_wrong(options, check, words):
    with pytest.raises(Fault) as fault:
        run_pointer(**options)
    assert fault.value.check == check and words in str(fault.value), str(fault.value)
