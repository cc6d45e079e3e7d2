"""Counts of launches against counts by hand, and beside the floors of a case."""

from dataclasses import dataclass

import numpy as np
import pytest

from glm5_ops.workloads import Case
from tests.emulator.counts import beside_floor, show_floor
from tests.emulator.device import counting
from tests.emulator.ptx import array_on_device, run
from tests.emulator.test_async import BULK, COPY_16, INIT, LOAD, SHARED, WAIT, _wgmma

# %r1 thread, %rd1 out, %r2 shared memory
BODY = SHARED + "mov.u32 %r7, 0;\n"


def launch(body: str, words: int = 4096, **options) -> dict:
    with counting() as launches:
        run(BODY + body, np.zeros(words, np.uint32), **options)
    (only,) = launches
    return only


def address(scale: int, offset: int = 0) -> str:
    return f"mul.wide.u32 %rd3, %r1, {scale};\nadd.u64 %rd3, %rd3, %rd1;\nadd.u64 %rd3, %rd3, {offset};\n"


# How 32 lanes read: (bytes between lanes, first byte, ld) -> sectors taken, and the fewest for what they read.
SECTORS = {
    (4, 0, "u32 %r7"): (4, 4),
    (4, 4, "u32 %r7"): (5, 4),
    (0, 0, "u32 %r7"): (1, 1),
    (32, 0, "u32 %r7"): (32, 4),
    (8, 0, "u32 %r7"): (8, 4),
    (16, 0, "v4.u32 {%r7, %r8, %r9, %r10}"): (16, 16),
    (32, 0, "v4.u32 {%r7, %r8, %r9, %r10}"): (32, 16),
    (1, 0, "u8 %rs1"): (1, 1),
}


@pytest.mark.parametrize("pattern", SECTORS, ids=str)
@pytest.mark.parametrize("space", ["global.", ""])
def test_sectors_of_a_load(pattern, space):
    scale, offset, load = pattern
    kind, register = load.split(" ", 1)
    counts = launch(address(scale, offset) + f"ld.{space}{kind} {register}, [%rd3];\n")["memory"]["global loads"]
    size = {"u32": 4, "v4.u32": 16, "u8": 1}[kind]
    assert counts == {"requests": 1, "bytes": 32 * size, "taken": SECTORS[pattern][0], "ideal": SECTORS[pattern][1]}


def test_lanes_that_are_off_do_not_count():
    body = "setp.lt.u32 %p3, %r1, 8;\n@%p3 st.global.u32 [%rd3], %r1;\n"
    assert launch(address(4) + body)["memory"] == {
        "global stores": {"requests": 1, "bytes": 32, "taken": 1, "ideal": 1}
    }


def shared(scale: int) -> str:
    return f"mad.lo.u32 %r4, %r1, {scale}, %r2;\n"


V2, V4 = "v2.u32 [%r4], {%r7, %r7}", "v4.u32 [%r4], {%r7, %r7, %r7, %r7}"
# How 32 lanes write: (bytes between lanes, st) -> wavefronts, and the fewest
WAVEFRONTS = {
    (4, "u32 [%r4], %r7"): (1, 1),
    (8, "u32 [%r4], %r7"): (2, 1),
    (12, "u32 [%r4], %r7"): (1, 1),
    (128, "u32 [%r4], %r7"): (32, 1),
    (132, "u32 [%r4], %r7"): (1, 1),
    (0, "u32 [%r4], %r7"): (1, 1),
    (8, V2): (2, 2),
    (16, V2): (4, 2),
    (16, V4): (4, 4),
    (32, V4): (8, 4),
    (128, V4): (32, 4),
    (144, V4): (4, 4),
    (1, "u8 [%r4], %rs1"): (1, 1),
}


@pytest.mark.parametrize("pattern", WAVEFRONTS, ids=str)
def test_wavefronts_of_a_store(pattern):
    scale, store = pattern
    counts = launch(shared(scale) + "mov.u16 %rs1, 0;\n" + f"st.shared.{store};\n")["memory"]["shared stores"]
    assert (counts["requests"], counts["taken"], counts["ideal"]) == (1, *WAVEFRONTS[pattern])


@pytest.mark.parametrize(("scale", "wavefronts"), [(16, 4), (32, 8), (128, 32), (144, 4)])
def test_wavefronts_of_matrices(scale, wavefronts):
    body = shared(scale) + "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r4], {%r7, %r7, %r7, %r7};\nbar.warp.sync -1;\n"
    body += "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r7, %r8, %r9, %r10}, [%r4];\n"
    expected = {"requests": 1, "bytes": 512, "taken": wavefronts, "ideal": 4}
    assert launch(body)["memory"] == {"stmatrix": expected, "ldmatrix": expected}


def test_copies_are_counted_where_they_read():
    source = array_on_device(np.zeros(256, np.uint32))
    options = {"arguments": [source], "parameters": ("u64 src",)}
    body = COPY_16 + "cp.async.cg.shared.global [%r6], [%rd4], 16;\ncp.async.wait_all;\n"
    counts = launch(body, **options)["memory"]
    assert counts == {"cp.async": {"requests": 1, "bytes": 512, "taken": 16, "ideal": 16}}
    body = INIT + LOAD.format(bytes=1024, copy=BULK.format(bytes=1024)) + WAIT
    counts = launch(body, **options)
    assert counts["memory"]["bulk loads"] == {"requests": 1, "bytes": 1024, "taken": 32, "ideal": 32}
    assert counts["delivered_bytes"] == 1024


def test_multicast_delivers_more_than_it_reads():
    source = array_on_device(np.zeros(256, np.uint32))
    copy = "mov.u16 %rs1, 3;\ncp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
    copy += "[%r2], [%rd2], 1024, [%r3], %rs1;\n"
    body = INIT + "barrier.cluster.arrive;\nbarrier.cluster.wait;\n" + ONE_ARRIVES + "mov.u32 %r5, %cluster_ctarank;\n"
    body += "or.b32 %r5, %r5, %r1;\nsetp.ne.u32 %p6, %r5, 0;\n@%p6 bra sent;\nld.param.u64 %rd2, [src];\n"
    body += copy + "sent:\n" + WAIT + "barrier.cluster.arrive;\nbarrier.cluster.wait;\n"
    counts = launch(body, arguments=[source], parameters=("u64 src",), blocks=2, cluster=2)
    assert counts["memory"]["bulk loads"]["bytes"] == 1024 and counts["delivered_bytes"] == 2048


ONE_ARRIVES = "@!%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 1024;\n"


def test_multiply_adds_by_type():
    with counting() as launches:
        _wgmma("e4m3", 40, registers_a=True)
        _wgmma("s8", 32)
    assert [each["multiply_adds"] for each in launches] == [
        {"wgmma e4m3 x e4m3": 2 * 64 * 40 * 32},
        {"wgmma s8 x s8": 2 * 64 * 32 * 32},
    ]


def test_instructions_by_class():
    counts = launch("add.u32 %r7, %r7, 1;\n@%p1 add.u32 %r7, %r7, 1;\nfma.rn.f32 %f1, %f1, %f1, %f1;\n")
    assert counts["instructions"]["integer"] == {"warps": 1, "lanes": 32}
    assert counts["instructions"]["floating"] == {"warps": 1, "lanes": 32}
    assert counts["multiply_adds"] == {"fma": 32}


def test_launches_are_counted_one_by_one_and_only_inside():
    body = "st.global.u32 [%rd1], %r7;\n"
    with counting() as launches:
        for blocks in (1, 3):
            run(BODY + body, np.zeros(4, np.uint32), **({"blocks": blocks} if blocks == 1 else {"threads": 96}))
    run(BODY + body, np.zeros(4, np.uint32))
    assert [each["memory"]["global stores"]["requests"] for each in launches] == [1, 3]
    assert [each["threads"] for each in launches] == [[32, 1, 1], [96, 1, 1]]


# ---- beside the floor


@dataclass(frozen=True)
class Copy(Case):
    """Each word is read once and written once."""

    words: int

    def bytes_moved(self) -> int:
        return 8 * self.words


COPY = address(4) + "ld.param.u64 %rd5, [src];\nsub.u64 %rd6, %rd3, %rd1;\nadd.u64 %rd5, %rd5, %rd6;\n"
READ, STORE = "ld.global.u32 %r8, [%rd5];\nadd.u32 %r7, %r7, %r8;\n", "st.global.u32 [%rd3], %r7;\n"


@pytest.mark.parametrize(("reads", "ratio"), [(1, 1.0), (2, 1.5), (3, 2.0)])
def test_traffic_that_doubles_is_seen(reads, ratio):
    source = array_on_device(np.zeros(256, np.uint32))
    counts = launch(COPY + READ * reads + STORE, 256, threads=256, arguments=[source], parameters=("u64 src",))
    assert counts["memory"]["global loads"]["taken"] == 32 * reads
    beside = beside_floor(Copy(256), [counts])
    assert beside["bytes_ratio"] == ratio and beside["global_bytes"] == ratio * 2048
    assert beside["operations_ratio"] is None, "the case has no operations to compare with"
    assert show_floor(beside) == f"{ratio:.2f}x the floor's bytes, its case states no operations"


def test_a_stride_is_seen_as_traffic():
    source = array_on_device(np.zeros(2048, np.uint32))
    body = COPY.replace("%r1, 4;", "%r1, 32;", 1) + READ + STORE
    counts = launch(body, 2048, threads=256, arguments=[source], parameters=("u64 src",))
    beside = beside_floor(Copy(256), [counts])
    assert beside["bytes_ratio"] == 8 and beside["sectors_ratio"] == 8


def test_operations_beside_the_floor():
    @dataclass(frozen=True)
    class Product(Copy):
        def flops(self) -> int:
            return 2 * 64 * 64 * 16

    with counting() as launches:
        _wgmma("bf16", 64)  # issues the product twice
    assert beside_floor(Product(1), launches)["operations_ratio"] == 2
