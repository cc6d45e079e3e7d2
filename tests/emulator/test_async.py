"""Asynchronous copies, mbarriers and matrix instructions in small PTX programs, against numpy."""

import ctypes

import numpy as np
import pytest
import torch

from tests.emulator import device
from tests.emulator.device import Fault
from tests.emulator.ptx import array_on_device, run

RANDOM = np.random.default_rng(4)
SHARED = (
    ".shared .align 1024 .b8 smem[32768];\n.shared .align 8 .b64 bar;\n"
    "mov.u32 %r1, %tid.x;\nmov.u32 %r2, smem;\nmov.u32 %r3, bar;\n"
    "ld.param.u64 %rd1, [out];\n"
)
ONE = "setp.ne.u32 %p1, %r1, 0;\n"
INIT = (
    ONE + "@%p1 bra started;\nmbarrier.init.shared::cta.b64 [%r3], 1;\n"
    "fence.mbarrier_init.release.cluster;\nstarted:\nbar.sync 0;\n"
)
WAIT = "again:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0;\n@!%p2 bra again;\n"
# Thread t writes the 4-byte words t, t + blockDim, ... of the first %r10 words of shared memory to out.
OUT = (
    "mov.u32 %r20, %r1;\nmov.u32 %r25, %ntid.x;\ncopy:\nsetp.ge.u32 %p5, %r20, {words};\n"
    "@%p5 bra copied;\nshl.b32 %r21, %r20, 2;\nadd.u32 %r22, %r2, %r21;\n"
    "ld.shared.b32 %r23, [%r22];\ncvt.u64.u32 %rd20, %r21;\nadd.u64 %rd21, %rd1, %rd20;\n"
    "st.global.b32 [%rd21], %r23;\nadd.u32 %r20, %r20, %r25;\nbra copy;\ncopied:\n"
)


def tensor_map(address, element, dimensions, strides, box, swizzle=0, steps=None):
    """A tensor map in device memory, and its array to keep."""
    steps = steps or [1] * len(dimensions)
    opaque = (ctypes.c_uint64 * 24)()
    at = -(-ctypes.addressof(opaque) // 64) * 64
    u64s, u32s = (lambda v: (ctypes.c_uint64 * len(v))(*v)), (lambda v: (ctypes.c_uint32 * len(v))(*v))
    encode = device.library().cuTensorMapEncodeTiled
    encode.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_uint32,
        ctypes.c_void_p,
        *[ctypes.c_void_p] * 4,
        *[ctypes.c_int] * 4,
    ]
    status = encode(
        at,
        element,
        len(dimensions),
        address,
        u64s(dimensions),
        u64s(strides or [16]),
        u32s(box),
        u32s(steps),
        0,
        swizzle,
        0,
        0,
    )
    assert status == 0
    return array_on_device(np.frombuffer(ctypes.string_at(at, 128), np.uint8))


def address_of(copy):
    return copy.tensor.data_ptr()


@pytest.fixture(params=[("fair", 0), ("late", 0), ("random", 3)], ids=lambda s: s[0])
def schedule(request):
    with device.session(request.param[1], request.param[0]):
        yield


# ---- cp.async ----

COPY_16 = (
    "ld.param.u64 %rd2, [src];\nshl.b32 %r5, %r1, 4;\nadd.u32 %r6, %r2, %r5;\n"
    "cvt.u64.u32 %rd3, %r5;\nadd.u64 %rd4, %rd2, %rd3;\n"
)


def test_cp_async_copies_and_fills_with_zeros(schedule):
    source = RANDOM.integers(0, 2**32, 128, dtype=np.uint32)
    body = (
        SHARED
        + COPY_16
        + "and.b32 %r7, %r1, 3;\nshl.b32 %r7, %r7, 2;\ncp.async.ca.shared.global [%r6], [%rd4], 16, %r7;\n"
        "cp.async.commit_group;\ncp.async.wait_group 0;\nbar.sync 0;\n" + OUT.format(words=128)
    )
    got = run(body, np.zeros(128, np.uint32), arguments=[array_on_device(source)], parameters=("u64 src",))
    expected = source.reshape(32, 4).copy()
    for lane in range(32):
        expected[lane, lane % 4 :] = 0
    np.testing.assert_array_equal(got, expected.ravel())


def test_cp_async_read_before_its_wait_is_a_race(schedule):
    body = (
        SHARED
        + COPY_16
        + "cp.async.cg.shared.global [%r6], [%rd4], 16;\ncp.async.commit_group;\n"
        + OUT.format(words=128)
    )
    with pytest.raises(Fault, match=r"cp\.async") as fault:
        run(
            body,
            np.zeros(128, np.uint32),
            arguments=[array_on_device(np.zeros(128, np.uint32))],
            parameters=("u64 src",),
        )
    assert fault.value.check == "race"


def test_cp_async_arrives_on_an_mbarrier(schedule):
    source = RANDOM.integers(0, 2**32, 128, dtype=np.uint32)
    body = (
        SHARED + INIT.replace("[%r3], 1", "[%r3], 32") + COPY_16 + "cp.async.cg.shared.global [%r6], [%rd4], 16;\n"
        "cp.async.mbarrier.arrive.noinc.shared.b64 [%r3];\n" + WAIT + OUT.format(words=128)
    )
    got = run(body, np.zeros(128, np.uint32), arguments=[array_on_device(source)], parameters=("u64 src",))
    np.testing.assert_array_equal(got, source)


# ---- bulk copies ----

LOAD = (
    ONE + "@%p1 bra loaded;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {bytes};\n"
    "ld.param.u64 %rd2, [src];\n{copy}\nloaded:\n"
)
BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd2], {bytes}, [%r3];"


def test_bulk_load_and_store(schedule):
    source = RANDOM.integers(0, 2**32, 256, dtype=np.uint32)
    store = (
        ONE + "@%p1 bra stored;\ncp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r2], 1024;\n"
        "cp.async.bulk.commit_group;\n"
        "cp.async.bulk.wait_group 0;\nstored:\n"
    )
    body = SHARED + INIT + LOAD.format(bytes=1024, copy=BULK.format(bytes=1024)) + WAIT + store
    got = run(body, np.zeros(256, np.uint32), threads=64, arguments=[array_on_device(source)], parameters=("u64 src",))
    np.testing.assert_array_equal(got, source)


def _bulk_fault(body, threads=64):
    with pytest.raises(Fault) as fault:
        run(
            body,
            np.zeros(256, np.uint32),
            threads=threads,
            arguments=[array_on_device(np.zeros(256, np.uint32))],
            parameters=("u64 src",),
        )
    return fault.value.check


def test_bulk_faults(schedule):
    loaded = SHARED + INIT + LOAD.format(bytes=1024, copy=BULK.format(bytes=1024))
    assert _bulk_fault(loaded + OUT.format(words=256)) in ("race", "uninitialised")
    write = "shl.b32 %r5, %r1, 2;\nadd.u32 %r6, %r2, %r5;\nst.shared.b32 [%r6], %r1;\n"
    store = (
        "bar.sync 0;\n"
        + ONE
        + "@%p1 bra stored;\ncp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r2], 256;\n{rest}stored:\n"
    )
    commit, fence = "cp.async.bulk.commit_group;\n", "fence.proxy.async.shared::cta;\n"
    wait = "cp.async.bulk.wait_group.read 0;\n"
    assert _bulk_fault(SHARED + write + store.format(rest=commit + wait)) == "proxy"
    assert _bulk_fault(SHARED + write + fence + store.format(rest="") + "bar.sync 0;\n" + write) == "race"
    assert (
        _bulk_fault(SHARED + write + store.format(rest=commit + wait).replace("%r2], 256", "%r2], 40")) == "alignment"
    )
    assert _bulk_fault(SHARED + INIT + LOAD.format(bytes=1024, copy=BULK.format(bytes=2048)) + WAIT) == "bounds"
    assert _bulk_fault(SHARED + INIT + LOAD.format(bytes=1008, copy=BULK.format(bytes=1024)) + WAIT) == "mbarrier"
    assert _bulk_fault(SHARED + LOAD.format(bytes=1024, copy=BULK.format(bytes=1024))) in ("mbarrier", "uninitialised")


def test_a_block_that_exits_while_its_store_reads_is_reported():
    body = (
        SHARED + "shl.b32 %r5, %r1, 2;\nadd.u32 %r6, %r2, %r5;\nst.shared.b32 [%r6], %r1;\n"
        "fence.proxy.async.shared::cta;\nbar.sync 0;\n"
        + ONE
        + "@%p1 bra stored;\ncp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r2], 256;\n"
        "cp.async.bulk.commit_group;\nstored:\n"
    )
    with device.session(0, "late"):
        assert _bulk_fault(body) == "copy"


@pytest.mark.parametrize("swizzle", [0, 1, 2, 3])
def test_tensor_load_swizzles_and_tensor_store_undoes_it(schedule, swizzle):
    """A box that hangs over every edge, out to the same place of another tensor."""
    columns, rows, box = 100, 40, [8 << swizzle, 16]
    source = RANDOM.integers(1, 2**16, (rows, 104), dtype=np.uint16)
    held = array_on_device(source)
    result = array_on_device(np.zeros((rows, 104), np.uint16))
    maps = [tensor_map(address_of(t), 1, [columns, rows], [208], box, swizzle) for t in (held, result)]
    bytes_ = box[0] * box[1] * 2
    for x, y in ((0, 0), (columns - 4, rows - 5), (-4, -3)):
        load = (
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%r2], [%rd2, {%r30, %r31}], [%r3];"
        )
        store = (
            ONE + "@%p1 bra stored;\nld.param.u64 %rd5, [dst];\n"
            "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd5, {%r30, %r31}], [%r2];\n"
            "cp.async.bulk.commit_group;\n"
            "cp.async.bulk.wait_group 0;\nstored:\n"
        )
        where = f"mov.s32 %r30, {x};\nmov.s32 %r31, {y};\n"
        body = (
            SHARED + where + INIT + LOAD.format(bytes=bytes_, copy=load) + WAIT + OUT.format(words=bytes_ // 4) + store
        )
        got = run(body, np.zeros(bytes_ // 2, np.uint16), threads=32, arguments=maps, parameters=("u64 src", "u64 dst"))
        padded = np.zeros((rows + 64, columns + 128), np.uint16)
        padded[32 : 32 + rows, 64 : 64 + columns] = source[:, :columns]
        expected = padded[32 + y :, 64 + x :][: box[1], : box[0]].copy()
        chunks = expected.reshape(-1, 8)
        at = np.arange(len(chunks)) * 16
        moved = at ^ (at >> 3 & [0, 0x10, 0x30, 0x70][swizzle])
        np.testing.assert_array_equal(got.reshape(-1, 8)[moved // 16], chunks)
        after = result.tensor.numpy().view(np.uint16).reshape(rows, 104)
        inside = slice(max(y, 0), max(min(y + box[1], rows), 0)), slice(max(x, 0), min(x + box[0], columns))
        np.testing.assert_array_equal(after[inside], source[inside])
    assert not after[:, columns:].any()


@pytest.mark.parametrize("element,dtype", [(7, np.float32), (3, np.int32), (6, np.float16)])
def test_tensor_reduction_adds(schedule, element, dtype):
    values = RANDOM.integers(-50, 50, (8, 16)).astype(dtype)
    held = array_on_device(values)
    size = values.nbytes
    src = tensor_map(address_of(held), element, [16, 8], [16 * values.itemsize], [16, 8])
    load = (
        "mov.s32 %r30, 0;\n"
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%r2], [%rd2, {%r30, %r30}], [%r3];"
    )
    reduce = (
        ONE + "@%p1 bra stored;\n"
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%rd2, {%r30, %r30}], [%r2];\n"
        "cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nstored:\n"
    )
    body = SHARED + INIT + LOAD.format(bytes=size, copy=load) + WAIT + reduce
    run(body, np.zeros(1, np.uint32), arguments=[src], parameters=("u64 src",))
    np.testing.assert_array_equal(held.tensor.numpy().view(dtype).reshape(8, 16), values + values)


def test_multicast_reaches_every_block_of_the_mask(schedule):
    source = RANDOM.integers(0, 2**32, 64, dtype=np.uint32)
    held = array_on_device(source)
    src = tensor_map(address_of(held), 2, [64], None, [64])
    begin = (
        "mov.u32 %r40, %cluster_ctarank;\nmul.wide.u32 %rd30, %r40, 256;\nadd.u64 %rd1, %rd1, %rd30;\n"
        + INIT.replace(
            "bar.sync 0;",
            "barrier.cluster.arrive;\nbarrier.cluster.wait;\nsetp.ne.u32 %p1, %r1, 0;\n@%p1 bra expected;\n"
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 256;\nexpected:",
        )
    )
    load = (
        "setp.ne.u32 %p4, %r40, 0;\nor.pred %p1, %p1, %p4;\n@%p1 bra loaded;\n"
        "ld.param.u64 %rd2, [src];\nmov.b16 %rs1, 3;\nmov.s32 %r30, 0;\n"
        "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%r2], [%rd2, {%r30}], [%r3], %rs1;\n"
        "loaded:\n"
    )
    end = "barrier.cluster.arrive;\nbarrier.cluster.wait;\n"
    got = run(
        SHARED + begin + load + WAIT + OUT.format(words=64) + end,
        np.zeros(128, np.uint32),
        blocks=2,
        cluster=2,
        arguments=[src],
        parameters=("u64 src",),
    )
    np.testing.assert_array_equal(got.reshape(2, 64), np.stack([source, source]))


# ---- mbarrier ----


def test_mbarrier_state_and_test_wait():
    body = (
        SHARED + INIT.replace("[%r3], 1", "[%r3], 32") + "mbarrier.arrive.shared::cta.b64 %rd5, [%r3];\n"
        "spin:\nmbarrier.test_wait.shared::cta.b64 %p2, [%r3], %rd5;\n@!%p2 bra spin;\n"
        "mbarrier.pending_count.b64 %r9, %rd5;\n"
        "setp.ne.u32 %p3, %r1, 0;\n@%p3 bra end;\nst.global.u32 [%rd1], %r9;\nend:\n"
    )
    assert run(body, np.zeros(1, np.uint32), threads=32)[0] == 32


@pytest.mark.parametrize(
    "change,check",
    [
        (("[%r3], 1;", "[%r3], 0;"), "mbarrier"),
        (("mbarrier.arrive.shared::cta.b64 _, [%r3];", "mbarrier.arrive.shared::cta.b64 _, [%r3], 2;"), "mbarrier"),
        (("add.u32 %r4, %r3, 0;", "add.u32 %r4, %r3, 4;"), "alignment"),
        (("mbarrier.arrive.shared::cta.b64 _, [%r3];", ""), "deadlock"),
        (("mbarrier.init", "// "), "uninitialised"),
        ((", 0;\n@!", ", 2;\n@!"), "mbarrier"),
    ],
)
def test_mbarrier_faults(change, check):
    body = (
        SHARED
        + INIT
        + "add.u32 %r4, %r3, 0;\n"
        + ONE
        + "@%p1 bra arrived;\nmbarrier.arrive.shared::cta.b64 _, [%r3];\narrived:\n"
        + WAIT.replace("%r3", "%r4")
    )
    assert change[0] in body
    with pytest.raises(Fault) as fault:
        run(body.replace(*change), np.zeros(1, np.uint32), threads=64)
    assert fault.value.check == check, str(fault.value)


# ---- matrices ----


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_stmatrix(transposed):
    """Four matrices of 8 x 8 in, and out again 512 bytes further."""
    values = RANDOM.integers(0, 2**16, (4, 8, 8), dtype=np.uint16)
    trans = ".trans" if transposed else ""
    body = (
        SHARED
        + COPY_16
        + "cp.async.cg.shared.global [%r6], [%rd4], 16;\ncp.async.commit_group;\ncp.async.wait_all;\nbar.sync 0;\n"
        f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r30, %r31, %r32, %r33}}, [%r6];\n"
        "bar.sync 0;\nadd.u32 %r7, %r6, 512;\n"
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r7], {%r30, %r31, %r32, %r33};\n"
        "bar.sync 0;\n"
        "add.u32 %r2, %r2, 512;\n" + OUT.format(words=128)
    )
    got = run(body, np.zeros(256, np.uint16), arguments=[array_on_device(values)], parameters=("u64 src",)).reshape(
        4, 8, 8
    )
    np.testing.assert_array_equal(got, values.transpose(0, 2, 1) if transposed else values)


def _torch_bits(values, dtype):
    return torch.from_numpy(values).to(dtype).view(torch.uint8).numpy()


TYPES = {
    "bf16": (torch.bfloat16, 16),
    "f16": (torch.float16, 16),
    "tf32": (torch.float32, 8),
    "e4m3": (torch.float8_e4m3fn, 32),
    "e5m2": (torch.float8_e5m2, 32),
    "s8": (torch.int8, 32),
}


def _operands(kind, m, n):
    dtype, k = TYPES[kind]
    a, b = RANDOM.integers(-4, 5, (m, k)).astype(np.float32), RANDOM.integers(-4, 5, (n, k)).astype(np.float32)
    return a, b, _torch_bits(a, dtype).reshape(m, 32), _torch_bits(b, dtype).reshape(n, 32)


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32", "s8"])
def test_mma(kind):
    a, b, a_bits, b_bits = _operands(kind, 16, 8)
    fragments = []
    for i in range(4):  # A: row l / 4 + 8 (i % 2), bytes 16 (i / 2) + 4 (l % 4)
        fragments.append(
            np.stack([a_bits[lane // 4 + 8 * (i % 2), 16 * (i // 2) + 4 * (lane % 4) :][:4] for lane in range(32)])
        )
    for i in range(2):
        fragments.append(np.stack([b_bits[lane // 4, 16 * i + 4 * (lane % 4) :][:4] for lane in range(32)]))
    source = np.stack(fragments).view(np.uint32).reshape(6, 32)
    load = "mul.wide.u32 %rd3, %r1, 4;\nld.param.u64 %rd2, [src];\nadd.u64 %rd2, %rd2, %rd3;\n"
    load += "".join(f"ld.global.u32 %r{30 + i}, [%rd2+{128 * i}];\n" for i in range(6))
    sum_, register, zero = (
        ("s32", "%r4", "mov.b32 %r4{}, 0;\n") if kind == "s8" else ("f32", "%f", "mov.f32 %f{}, 0f00000000;\n")
    )
    d = ", ".join(f"{register}{i}" for i in range(4))
    body = (
        SHARED
        + load
        + "".join(zero.format(i) for i in range(4))
        + f"mma.sync.aligned.m16n8k{TYPES[kind][1]}.row.col.{sum_}.{kind}.{kind}.{sum_} "
        f"{{{d}}}, {{%r30, %r31, %r32, %r33}}, {{%r34, %r35}}, {{{d}}};\n"
        + "add.u64 %rd1, %rd1, %rd3;\n"
        + "".join(f"st.global.{sum_} [%rd1+{128 * i}], {register}{i};\n" for i in range(4))
    )
    got = run(
        body,
        np.zeros((4, 32), np.int32 if kind == "s8" else np.float32),
        arguments=[array_on_device(source)],
        parameters=("u64 src",),
    ).reshape(4, 32)
    expected = a @ b.T
    for i in range(4):
        for lane in range(32):
            assert got[i, lane] == expected[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2]


def _wgmma(kind, n, registers_a=False, f16_sums=False, edit=lambda body: body):
    """D = A B^T + A B^T, 64 x n, both K-major without swizzle: cores of 8 x 16 bytes, halves of k `leading` apart."""
    a, b, a_bits, b_bits = _operands(kind, 64, n)

    def cores(bits):
        return bits.reshape(-1, 8, 2, 16).transpose(2, 0, 1, 3).ravel()

    source = np.concatenate([cores(a_bits), cores(b_bits)])
    words = len(source) // 4
    fill = (
        f"ld.param.u64 %rd2, [src];\nmov.u32 %r20, %r1;\nfill:\nsetp.ge.u32 %p5, %r20, {words};\n"
        f"@%p5 bra filled;\nshl.b32 %r21, %r20, 2;\n"
        "add.u32 %r22, %r2, %r21;\ncvt.u64.u32 %rd20, %r21;\nadd.u64 %rd21, %rd2, %rd20;\n"
        "ld.global.b32 %r23, [%rd21];\n"
        "st.shared.b32 [%r22], %r23;\nadd.u32 %r20, %r20, 128;\nbra fill;\nfilled:\n"
        "fence.proxy.async.shared::cta;\nbar.sync 0;\n"
    )

    def descriptor(to, offset, rows):
        bits = (128 >> 4) << 32 | (rows * 16 >> 4) << 16
        start = f"add.u32 %r24, %r2, {offset};\nshr.u32 %r24, %r24, 4;\ncvt.u64.u32 {to}, %r24;\n"
        return start + f"or.b64 {to}, {to}, {bits};\n"

    # A in registers: row 16 warp + lane / 4 (+ 8), bytes 4 (lane % 4), from the same cores
    a_registers = (
        "shr.u32 %r50, %r1, 5;\nand.b32 %r51, %r1, 31;\nshl.b32 %r50, %r50, 8;\n"
        "shl.b32 %r51, %r51, 2;\nadd.u32 %r52, %r50, %r51;\nadd.u32 %r52, %r52, %r2;\n"
        "ld.shared.b32 %r30, [%r52];\nld.shared.b32 %r31, [%r52+128];\n"
        "ld.shared.b32 %r32, [%r52+1024];\nld.shared.b32 %r33, [%r52+1152];\n"
    )
    kind_sum = "s32" if kind == "s8" else "f16" if f16_sums else "f32"
    count = n // 4 if f16_sums else n // 2
    name = "%d"
    declare = f".reg .{'f32' if kind_sum == 'f32' else 'b32'} %d<{count}>;\n"
    sums = ", ".join(f"{name}{i}" for i in range(count))
    tail = "" if kind == "s8" else ", 1, 1"
    if kind in ("bf16", "f16"):
        tail += ", 0" if registers_a else ", 0, 0"
    a_operand = "{%r30, %r31, %r32, %r33}" if registers_a else "%rd10"
    opcode = f"wgmma.mma_async.sync.aligned.m64n{n}k{TYPES[kind][1]}.{kind_sum}.{kind}.{kind}"

    def one(accumulate):
        return f"{opcode} {{{sums}}}, {a_operand}, %rd11, {accumulate}{tail};\n"

    body = (
        declare
        + SHARED
        + fill
        + descriptor("%rd10", 0, 64)
        + descriptor("%rd11", 2048, n)
        + (a_registers if registers_a else "")
    )
    body += (
        "setp.eq.u32 %p10, %r1, %r1;\nsetp.ne.u32 %p11, %r1, %r1;\nwgmma.fence.sync.aligned;\n"
        + one("%p11")
        + one("%p10")
    )
    body += (
        "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"
        "mul.wide.u32 %rd3, %r1, 4;\nadd.u64 %rd1, %rd1, %rd3;\n"
    )
    body += "".join(f"st.global.b32 [%rd1+{512 * i}], {name}{i};\n" for i in range(count))
    dtype = np.int32 if kind == "s8" else np.float16 if f16_sums else np.float32
    got = run(
        edit(body),
        np.zeros(count * 128 * (2 if f16_sums else 1), dtype),
        threads=128,
        arguments=[array_on_device(source)],
        parameters=("u64 src",),
    )
    expected = 2 * (a @ b.T)
    got = got.reshape(count, 128, -1)
    for i in range(n // 2):
        for t in range(0, 128, 5):
            row, column = t // 32 * 16 + t % 32 // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (t % 4) + i % 2
            value = got[i // 2, t, i % 2] if f16_sums else got[i, t, 0]
            assert value == expected[row, column], (i, t)


@pytest.mark.parametrize(
    "kind,n,registers_a,f16_sums",
    [
        ("bf16", 64, False, False),
        ("bf16", 24, True, False),
        ("f16", 32, False, True),
        ("f16", 16, True, False),
        ("tf32", 16, False, False),
        ("e4m3", 40, True, False),
        ("e5m2", 16, False, False),
        ("s8", 32, False, False),
        ("s8", 8, True, False),
    ],
)
def test_wgmma(schedule, kind, n, registers_a, f16_sums):
    _wgmma(kind, n, registers_a, f16_sums)


@pytest.mark.parametrize(
    "change,check",
    [
        (("wgmma.fence.sync.aligned;\n", ""), "wgmma"),
        (("%p11, 1, 1, 0, 0;\n", "%p11, 1, 1, 0, 0;\nadd.f32 %d0, %d0, 0f3F800000;\n"), "wgmma"),
        (("fence.proxy.async.shared::cta;\n", ""), "proxy"),
        (("fence.proxy.async.shared::cta;\nbar.sync 0;\n", "fence.proxy.async.shared::cta;\n"), "race uninitialised"),
        (
            (
                "wgmma.commit_group.sync.aligned;\n",
                "mov.u32 %r60, %laneid;\nsetp.lt.u32 %p12, %r60, 16;\n@%p12 wgmma.commit_group.sync.aligned;\n",
            ),
            "divergence",
        ),
        (
            ("wgmma.wait_group.sync.aligned 0;\n", "st.shared.b32 [%r2], %r1;\nwgmma.wait_group.sync.aligned 0;\n"),
            "race operands",
        ),
    ],
)
def test_wgmma_faults(change, check):
    def edit(body):
        assert change[0] in body
        return body.replace(*change)

    with pytest.raises(Fault) as fault:
        _wgmma("bf16", 16, edit=edit)
    assert fault.value.check in check.split(), str(fault.value)


def test_each_warp_of_a_wgmma_must_know_of_all_rows_of_a(schedule):
    """Each warp writes the rows of A that its own sums depend on: the instruction is the warpgroup's nevertheless."""
    own = (
        "shr.u32 %r61, %r1, 5;\nshl.b32 %r61, %r61, 8;\nand.b32 %r62, %r1, 31;\nshl.b32 %r62, %r62, 2;\n"
        "add.u32 %r61, %r61, %r62;\nadd.u32 %r61, %r61, %r2;\nld.shared.b32 %r62, [%r61];\n"
        "st.shared.b32 [%r61], %r62;\nfence.proxy.async.shared::cta;\n"
    )

    def edit(between):
        return lambda body: body.replace("bar.sync 0;\n", f"bar.sync 0;\n{own}{between}")

    _wgmma("bf16", 16, edit=edit("bar.sync 0;\n"))
    with pytest.raises(Fault, match=r"wgmma reads A|which a wgmma of warpgroup 0 reads") as fault:
        _wgmma("bf16", 16, edit=edit("bar.warp.sync -1;\n"))
    assert fault.value.check == "race"
