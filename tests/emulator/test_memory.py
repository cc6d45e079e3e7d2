"""Loads, stores, atomics and addresses."""

import ctypes

import numpy as np
import pytest

from tests.emulator.ptx import array_on_device, elementwise, run

OWN = "mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;"


@pytest.mark.parametrize(("kind", "dtype"), [("u8", np.uint8), ("s8", np.int8), ("u16", np.uint16), ("s16", np.int16)])
def test_narrow_loads_extend(kind, dtype):
    source = np.arange(-64, 64).astype(dtype)
    held = array_on_device(source)
    body = f"""{OWN} ld.param.u64 %rd4, [source]; mul.wide.u32 %rd5, %r1, {source.itemsize}; add.s64 %rd4, %rd4, %rd5;
        ld.global.{kind} %r2, [%rd4]; st.global.u32 [%rd3], %r2;"""
    got = run(body, np.zeros(128, np.int32), threads=128, arguments=(held,), parameters=("u64 source",))
    np.testing.assert_array_equal(got, source.astype(np.int32))
    held.free()


def test_vectors_of_four():
    source = np.arange(256, dtype=np.uint32)
    held = array_on_device(source)
    body = """mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [source]; mul.wide.u32 %rd3, %r1, 16;
        add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;
        ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd2]; st.global.v4.u32 [%rd1], {%r5, %r4, %r3, %r2};"""
    got = run(body, np.zeros(256, np.uint32), threads=64, arguments=(held,), parameters=("u64 source",))
    np.testing.assert_array_equal(got, source.reshape(-1, 4)[:, ::-1].ravel())
    held.free()


def test_registers_are_packed_and_unpacked():
    a = np.arange(64, dtype=np.uint32) * 0x01000193
    got = elementwise("mov.b32 {{%rs50, %rs51}}, {a}; mov.b32 {d}, {{%rs51, %rs50}};", np.uint32, a)
    np.testing.assert_array_equal(got, a << 16 | a >> 16)
    got = elementwise("mov.b64 {{%r50, %r51}}, {a}; mov.b64 {d}, {{%r51, %r50}};", np.uint64, a.astype(np.uint64))
    np.testing.assert_array_equal(got, a.astype(np.uint64) << 32)


def test_shared_memory_through_its_window_and_generically():
    body = f"""{OWN} mov.u32 %r2, tile; mad.lo.s32 %r3, %r1, 4, %r2; mul.lo.s32 %r4, %r1, 3; st.shared.u32 [%r3], %r4;
        bar.sync 0; xor.b32 %r5, %r1, 33; mad.lo.s32 %r6, %r5, 4, %r2; cvt.u64.u32 %rd6, %r6;
        cvta.shared.u64 %rd7, %rd6;
        ld.u32 %r7, [%rd7]; ld.shared.u32 %r8, [tile+4]; add.s32 %r7, %r7, %r8; st.global.u32 [%rd3], %r7;"""
    got = run(body, np.zeros(128, np.uint32), threads=128, outside=".shared .align 16 .b8 tile[512];")
    np.testing.assert_array_equal(got, (np.arange(128) ^ 33) * 3 + 3)


def test_dynamic_shared_memory_follows_the_static():
    body = f"""{OWN} mov.u32 %r2, fixed; mov.u32 %r3, dynamic; mov.u32 %r4, %dynamic_smem_size; and.b32 %r5, %r3, 1023;
        sub.s32 %r6, %r3, %r2; setp.ge.s32 %p1, %r6, 100; selp.u32 %r6, 1, 0, %p1; st.shared.u32 [%r3+2044], %r6;
        ld.shared.u32 %r7, [dynamic+2044]; mad.lo.s32 %r7, %r7, 10000, %r4; add.s32 %r7, %r7, %r5;
        st.global.u32 [%rd3], %r7;"""
    outside = ".extern .shared .align 1024 .b8 dynamic[]; .shared .align 4 .b8 fixed[100];"
    assert run(body, np.zeros(1, np.uint32), threads=1, shared_bytes=2048, outside=outside)[0] == 10000 + 2048


def test_local_memory_is_each_lanes_own():
    body = f""".local .align 8 .b8 depot[64]; .reg .b64 %SP, %SPL; {OWN} mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL;
        add.u64 %rd5, %SP, 8; st.u32 [%rd5], %r1; add.u64 %rd6, %SPL, 8; ld.local.u32 %r2, [%rd6];
        st.global.u32 [%rd3], %r2;"""
    np.testing.assert_array_equal(run(body, np.zeros(64, np.uint32), threads=64), np.arange(64))


def test_global_and_constant_variables():
    outside = """.const .align 4 .u32 table[4] = {10, 20, 30, 0xFF}; .global .align 4 .u32 counter = 7;
        .global .align 8 .u64 pointer = generic(table);"""
    body = f"""{OWN} mul.wide.u32 %rd4, %r1, 4; mov.u64 %rd5, table; add.s64 %rd6, %rd5, %rd4; ld.const.u32 %r2, [%rd6];
        ld.global.u64 %rd7, [pointer]; add.s64 %rd7, %rd7, %rd4; ld.u32 %r3, [%rd7]; ld.global.u32 %r4, [counter];
        add.s32 %r2, %r2, %r3; add.s32 %r2, %r2, %r4; st.global.u32 [%rd3], %r2;"""
    assert run(body, np.zeros(4, np.uint32), threads=4, outside=outside).tolist() == [27, 47, 67, 517]


@pytest.mark.parametrize(("op", "kind", "start", "expected"), [
    ("add", "u32", 5, 5 + sum(range(96))), ("max", "u32", 17, 95), ("min", "s32", 17, 0), ("or", "b32", 0, 127),
    ("and", "b32", 0xFF, 0), ("xor", "b32", 0, 0), ("inc", "u32", 0, None), ("exch", "b32", 1, None),
])  # fmt: skip
def test_atomics(op, kind, start, expected):
    body = f"""mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; atom.global.{op}.{kind} %r2, [%rd1], %r1;
        red.global.add.u32 [%rd1+4], 1;"""
    got = run(body, np.array([start, 0], np.uint32), threads=96)
    assert got[1] == 96
    if expected is not None:
        assert got[0] == expected


def test_compare_and_swap_elects_one():
    body = f"""{OWN} atom.global.cas.b32 %r2, [%rd1+512], 0, 1; st.global.u32 [%rd3], %r2;"""
    got = run(body, np.zeros(129, np.uint32), threads=128)
    assert got[128] == 1 and (got[:128] == 0).sum() == 1


def test_packed_atomics():
    out = np.array([0, 0], np.uint32)
    body = """ld.param.u64 %rd1, [out]; mov.b32 %r1, 0x3F80C000; red.global.add.noftz.bf16x2 [%rd1], %r1;
        red.global.add.f32 [%rd1+4], 0f3E800000;"""
    got = run(body, out, threads=4)
    assert got[0] == 0x4080C100 and got.view(np.float32)[1] == 1.0  # 4 x (1, -2) and 4 x 0.25


def test_parameters_of_every_width():
    body = """ld.param.u64 %rd1, [out]; ld.param.u8 %r1, [a]; ld.param.s16 %r2, [b]; ld.param.v2.u32 {%r3, %r4}, [c];
        mov.b64 %rd5, c; cvta.param.u64 %rd6, %rd5; ld.u32 %r5, [%rd6+4]; add.s32 %r3, %r3, %r4;
        st.global.v4.u32 [%rd1], {%r1, %r2, %r3, %r5};"""
    arguments = (ctypes.c_uint8(200), ctypes.c_int16(-3), ctypes.c_uint64(7 | 9 << 32))
    got = run(body, np.zeros(4, np.int32), threads=1, parameters=("u8 a", "s16 b", "u64 c"), arguments=arguments)
    assert got.tolist() == [200, -3, 16, 9]
