"""Clusters that cannot talk to each other run on threads of the host: nothing that a test sees depends on how many."""

import numpy as np
import pytest
import torch

import glm5_ops
from glm5_ops.workloads import all_workloads
from glm5_ops.workloads._compare import bits
from tests.emulator.device import Fault, counting, session
from tests.emulator.harness_target import emulated
from tests.emulator.ptx import run

# %r1 thread, %r2 block, %rd3 the thread's own u32 of `out`
OWN = """mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r4, %r2, %r3, %r1;
    ld.param.u64 %rd1, [out]; mul.wide.u32 %rd2, %r4, 4; add.s64 %rd3, %rd1, %rd2;"""
SHARED = ".shared .align 4 .b8 tile[64];"
# Who comes first in the block: what the schedule decides.
ORDER = f"""{OWN} mov.u32 %r5, tile; setp.ne.u32 %p1, %r1, 0; @!%p1 st.shared.u32 [%r5], 0; bar.sync 0;
    mov.u32 %r6, 0; LOOP: atom.shared.add.u32 %r7, [%r5], 1; add.u32 %r6, %r6, 1; setp.lt.u32 %p2, %r6, 20;
    @%p2 bra LOOP; st.global.u32 [%rd3], %r7;"""


def ordered(threads: int, seed: int, schedule: str = "random") -> tuple[np.ndarray, dict]:
    with counting() as launches, session(seed, schedule, threads=threads):
        got = run(ORDER, np.zeros(12 * 128, np.uint32), blocks=12, threads=128, outside=SHARED)
    return got, launches[0]


@pytest.mark.parametrize("seed", range(3))
def test_results_and_counts_do_not_depend_on_the_threads(seed):
    alone, counts = ordered(1, seed)
    for threads in (2, 5, 0):
        got, again = ordered(threads, seed)
        np.testing.assert_array_equal(got, alone)
        assert again == counts
    blocks = alone.reshape(12, 128)
    assert len({row.tobytes() for row in blocks}) > 1, "every cluster has the same schedule"
    assert (ordered(2, seed + 100)[0] != alone).any(), "the seed has no effect"


def test_an_op_gives_the_same_bits_and_counts():
    workload = all_workloads()["fp8_gemm"]
    inputs, seen = workload.case.parse("m=140,n=520,k=400").inputs("cpu"), []
    for threads in (1, 3):
        with counting() as launches, emulated(5, "random"), session(5, "random", threads=threads):
            seen.append((bits(workload.run(glm5_ops.fp8_gemm, inputs)[0]), launches))
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_lowest_cluster_that_fails_is_reported(threads):
    # it fails long after the others
    body = f"""{OWN} mov.u32 %r6, 0; setp.eq.u32 %p3, %r2, 5; selp.u32 %r8, 200000, 10, %p3;
        LOOP: add.u32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, %r8; @%p1 bra LOOP;
        setp.ge.u32 %p2, %r2, 5; @%p2 ld.global.u32 %r7, [%rd1+-4]; st.global.u32 [%rd3], %r6;"""
    for _ in range(5):
        with session(threads=threads), pytest.raises(Fault) as raised:
            run(body, np.zeros(24 * 32, np.uint32), blocks=24)
        assert raised.value.check == "bounds" and "block (5, 0, 0)" in str(raised.value)


@pytest.mark.parametrize("threads", [1, 3])
def test_one_endless_cluster_among_others(threads):
    body = f"{OWN} st.global.u32 [%rd3], %r2; LOOP: setp.eq.u32 %p1, %r2, 3; @%p1 bra LOOP;"
    with session(threads=threads, instruction_limit=100_000), pytest.raises(Fault) as raised:
        run(body, np.zeros(32 * 32, np.uint32), blocks=32)
    assert raised.value.check == "endless" and "block (3, 0, 0)" in str(raised.value)


CONFLICTS = {
    "two write": "setp.lt.u32 %p1, %r2, 2; @%p1 st.global.u32 [%rd1+3968], %r2;",
    "one reads what another writes": """setp.eq.u32 %p1, %r2, 4; @%p1 st.global.u32 [%rd1+3968], %r2;
        setp.eq.u32 %p2, %r2, 6; @%p2 ld.global.u32 %r9, [%rd1+3968];""",
    "one writes what another read": """setp.eq.u32 %p1, %r2, 6; @%p1 st.global.u32 [%rd1+3968], %r2;
        setp.eq.u32 %p2, %r2, 4; @%p2 ld.global.u32 %r9, [%rd1+3968];""",
    "a byte in common": """setp.eq.u32 %p1, %r2, 4; @%p1 st.global.u16 [%rd1+3968], %rs1; setp.eq.u32 %p2, %r2, 6;
        @%p2 st.global.u8 [%rd1+3969], %rs1;""",
}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", CONFLICTS)
def test_clusters_that_depend_on_each_other_are_reported(name, threads):
    with session(threads=threads), pytest.raises(Fault) as raised:
        run(f"{OWN} mov.u16 %rs1, 7; {CONFLICTS[name]}", np.zeros(1024, np.uint32), blocks=8, threads=1)
    assert raised.value.check == "race"
    later = 1 if name == "two write" else 6
    byte = 3969 if name == "a byte in common" else 3968
    assert f"cluster {later} and one before it use byte {byte} of in " in str(raised.value)


def test_neighbours_and_common_reads_are_no_conflict():
    body = f"""{OWN} cvt.u64.u32 %rd5, %r2; add.s64 %rd6, %rd1, %rd5; cvt.u16.u32 %rs1, %r2; st.global.u8 [%rd6], %rs1;
        ld.global.u8 %rs2, [%rd6]; ld.global.u32 %r9, [%rd1+1024]; st.global.u8 [%rd6], %rs2;"""
    with session(threads=4):
        got = run(body, np.zeros(512, np.uint32), blocks=200, threads=1)
    np.testing.assert_array_equal(got.view(np.uint8)[:200], np.arange(200))


def test_clusters_that_talk_take_turns():
    # block 0 waits for the flag of block 7; each adds to one counter, and writes where it was told
    body = f"""{OWN} setp.ne.u32 %p1, %r2, 7; @%p1 bra WAIT; st.volatile.global.u32 [%rd1+2048], 1; bra GO;
        WAIT: ld.volatile.global.u32 %r9, [%rd1+2048]; setp.eq.u32 %p2, %r9, 0; @%p2 bra WAIT;
        GO: atom.global.add.u32 %r8, [%rd1], 1; mul.wide.u32 %rd5, %r8, 4; add.s64 %rd6, %rd1, %rd5;
        st.global.u32 [%rd6+4], %r2;"""
    first = None
    for threads in (1, 4):
        with session(3, "random", threads=threads):
            got = run(body, np.zeros(1024, np.uint32), blocks=8, threads=1)
        assert got[0] == 8 and sorted(got[1:9]) == list(range(8)) and got[1] == 7
        first = got if first is None else first
        np.testing.assert_array_equal(got, first)


TALKING = ["atom.global.add.u32 %r9, [%rd1+3968], 1;", "red.global.add.u32 [%rd1+3968], 1;",
           "st.volatile.global.u32 [%rd1+3968], 1;", "st.release.gpu.global.u32 [%rd1+3968], 1;",
           "st.relaxed.sys.global.u32 [%rd1+3968], 1;", "membar.gl; st.global.u32 [%rd1+3968], 1;",
           "fence.acq_rel.gpu; st.global.u32 [%rd1+3968], 1;"]  # fmt: skip


@pytest.mark.parametrize("instruction", TALKING)
def test_what_counts_as_talking(instruction):
    got = run(f"{OWN} {instruction}", np.zeros(1024, np.uint32), blocks=8, threads=1)
    assert got[992] == (8 if "add" in instruction else 1)


def test_a_schedule_is_the_clusters_own():
    few, many = (run(ORDER, np.zeros(n * 128, np.uint32), blocks=n, threads=128, outside=SHARED) for n in (2, 12))
    np.testing.assert_array_equal(few, many[:256])
