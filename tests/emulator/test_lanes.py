"""Lanes of one warp against each other in shared memory: what orders them, and what does not."""

import numpy as np
import pytest

from tests.emulator.device import Fault
from tests.emulator.ptx import array_on_device, run
from tests.emulator.test_async import COPY_16, INIT, SHARED, WAIT, schedule  # noqa: F401

# Each lane writes its own word; what stands between; each reads the word of the lane beside it.
OWN = "shl.b32 %r4, %r1, 2;\nadd.u32 %r5, %r2, %r4;\nxor.b32 %r6, %r4, 4;\nadd.u32 %r6, %r2, %r6;\n"
WRITE, READ = "st.shared.u32 [%r5], %r1;\n", "ld.shared.u32 %r7, [%r6];\n"
OUT = "cvt.u64.u32 %rd2, %r4;\nadd.u64 %rd3, %rd1, %rd2;\nst.global.u32 [%rd3], %r7;\n"
ARRIVE = "mbarrier.arrive.shared::cta.b64 _, [%r3];\n"
# Lanes 0 to 15 and 16 to 31 come to the same instruction from different places.
SPLIT = "setp.lt.u32 %p3, %r1, 16;\n@%p3 bra low;\nbar.warp.sync -1;\nbra met;\nlow:\nbar.warp.sync -1;\nmet:\n"

ORDERED = {
    "bar.warp.sync": "bar.warp.sync -1;\n",
    "bar.warp.sync from two places": SPLIT,
    "a barrier of the block": "bar.sync 0;\n",
    "a barrier of one warp": "bar.sync 1, 32;\n",
    "an mbarrier": INIT.replace("[%r3], 1", "[%r3], 32") + ARRIVE + WAIT,
    "an atomic": "atom.shared.add.u32 %r8, [%r2+1024], 1;\n" * 2,
    "a cluster barrier": "barrier.cluster.arrive;\nbarrier.cluster.wait;\n",
}
UNORDERED = {
    "nothing": "",
    "shfl": "shfl.sync.idx.b32 %r8, %r1, 0, 31, -1;\n",
    "vote": "vote.sync.ballot.b32 %r8, %p1, -1;\n",
    "redux": "redux.sync.add.u32 %r8, %r1, -1;\n",
    "elect": "elect.sync %r8|%p4, -1;\n",
    "a fence": "fence.acq_rel.cta;\n",
    "bar.warp.sync of every second lane": "and.b32 %r8, %r1, 1;\nsetp.eq.u32 %p3, %r8, 0;\n"
    "@%p3 bra even;\nbar.warp.sync 0xaaaaaaaa;\nbra met;\neven:\nbar.warp.sync 0x55555555;\nmet:\n",
}


def _run(between, write=WRITE, read=READ, **options):
    begin = "setp.ne.u32 %p1, %r1, 0;\nmov.u32 %r30, 0;\nst.shared.u32 [%r2+1024], %r30;\nbar.sync 0;\n"
    return run(SHARED + begin + OWN + write + between + read + OUT, np.zeros(32, np.uint32), **options)


@pytest.mark.parametrize("between", ORDERED)
def test_lanes_that_met_may_read_each_other(schedule, between):  # noqa: F811
    assert (_run(ORDERED[between]) == np.arange(32) ^ 1).all()


@pytest.mark.parametrize("between", UNORDERED)
def test_lanes_that_did_not_meet_race(schedule, between):  # noqa: F811
    with pytest.raises(Fault, match=r"which lane \d+ of warp 0 wrote.*__syncwarp") as fault:
        _run(UNORDERED[between])
    assert fault.value.check == "race"


@pytest.mark.parametrize("between", UNORDERED)
def test_a_lane_knows_what_it_wrote_itself(between):
    assert (_run(UNORDERED[between], read="ld.shared.u32 %r7, [%r5];\n") == np.arange(32)).all()


def test_a_read_before_another_lanes_write_races():
    begin = WRITE + "bar.warp.sync -1;\n" + READ
    assert (_run("bar.warp.sync -1;\n", write=begin, read=WRITE) == np.arange(32) ^ 1).all()
    with pytest.raises(Fault, match=r"writes shared address .* which lane 1 of warp 0 reads"):
        _run("", write=begin, read=WRITE)


def test_bytes_of_one_word_are_no_race():
    write = "add.u32 %r9, %r2, %r1;\ncvt.u16.u32 %rs1, %r1;\nst.shared.u8 [%r9], %rs1;\n"
    read = "xor.b32 %r9, %r9, {};\nld.shared.u8 %r7, [%r9];\n"
    assert (_run("", write, read.format(0)) == np.arange(32)).all()
    with pytest.raises(Fault, match="which lane 1 of warp 0 wrote"):
        _run("", write, read.format(1))


STORES = [("shared", "%r2"), ("global", "%rd1")]


@pytest.mark.parametrize(("space", "base"), STORES)
def test_one_store_of_different_values_to_one_address_is_a_race(space, base):
    store = f"{{}}st.{space}.u32 [{base}+64], {{}};\nbar.warp.sync -1;\n"
    same = store.format("shr.u32 %r9, %r1, 5;\n", "%r9")
    assert (_run(same, read=READ) == np.arange(32) ^ 1)[[i for i in range(32) if i ^ 1 != 16]].all()
    with pytest.raises(Fault, match="another lane of the warp stores another value there") as fault:
        _run("bar.warp.sync -1;\n" + store.format("", "%r1"))
    assert fault.value.check == "race"
    one = store.format("setp.eq.u32 %p3, %r1, 7;\n@%p3 ", "%r1")
    _run("bar.warp.sync -1;\n" + one)


def test_equal_values_stored_together_are_known_to_their_lanes_alone():
    store = "bar.warp.sync -1;\nmov.u32 %r9, 5;\nst.shared.u32 [%r2+512], %r9;\n"
    read = "ld.shared.u32 %r7, [%r2+512];\n"
    assert (_run(store + "bar.warp.sync -1;\n", read=read) == 5).all()
    with pytest.raises(Fault, match=r"which warp 0 wrote.*__syncwarp"):
        _run(store, read=read)


# ---- one lane acts for the others

PRODUCER = "setp.ge.u32 %p6, %r1, 32;\n@%p6 bra second;\n"
SECOND = "bra end;\nsecond:\n"


def test_one_lane_that_arrives_must_have_met_the_others(schedule):  # noqa: F811
    """All lanes of warp 0 write; lane 0 arrives; warp 1 waits and reads."""
    body = SHARED + INIT + OWN + PRODUCER + WRITE + "{}@%p1 bra end;\n" + ARRIVE + SECOND + WAIT
    body += "sub.u32 %r4, %r4, 128;\nadd.u32 %r5, %r2, %r4;\nld.shared.u32 %r7, [%r5];\n" + OUT + "end:\n"
    result = run(body.format("bar.warp.sync -1;\n"), np.zeros(32, np.uint32), threads=64)
    assert (result == np.arange(32)).all()
    with pytest.raises(Fault, match=r"which lane \d+ of warp 0 wrote, and nothing orders the two\n"):
        run(body.format(""), np.zeros(32, np.uint32), threads=64)


def test_one_lane_that_waits_must_meet_the_others(schedule):  # noqa: F811
    """Warp 0 writes and arrives; lane 0 of warp 1 waits; all lanes of warp 1 read."""
    body = SHARED + INIT.replace("[%r3], 1", "[%r3], 32") + OWN + PRODUCER + WRITE + ARRIVE + SECOND
    body += "setp.ne.u32 %p7, %r1, 32;\n@%p7 bra waited;\n" + WAIT + "waited:\n{}"
    body += "sub.u32 %r4, %r4, 128;\nadd.u32 %r5, %r2, %r4;\nld.shared.u32 %r7, [%r5];\n" + OUT + "end:\n"
    result = run(body.format("bar.warp.sync -1;\n"), np.zeros(32, np.uint32), threads=64)
    assert (result == np.arange(32)).all()
    with pytest.raises(Fault) as fault:
        run(body.format(""), np.zeros(32, np.uint32), threads=64)
    assert fault.value.check in ("race", "uninitialised")  # whichever comes first under the schedule


def test_each_lane_waits_for_its_own_cp_async(schedule):  # noqa: F811
    source = np.arange(128, dtype=np.uint32)
    body = SHARED + COPY_16 + "cp.async.cg.shared.global [%r6], [%rd4], 16;\ncp.async.commit_group;\n"
    body += "cp.async.wait_group 0;\n{}xor.b32 %r6, %r6, {};\nld.shared.u32 %r7, [%r6];\nshl.b32 %r4, %r1, 2;\n" + OUT

    def result(between, distance):
        arguments = {"arguments": [array_on_device(source)], "parameters": ("u64 src",)}
        return run(body.format(between, distance), np.zeros(32, np.uint32), **arguments)

    assert (result("", 0) == 4 * np.arange(32)).all()
    assert (result("bar.warp.sync -1;\n", 16) == 4 * (np.arange(32) ^ 1)).all()
    with pytest.raises(Fault, match=r"a cp\.async of warp 0 wrote") as fault:
        result("", 16)
    assert fault.value.check == "race"


STORE = (
    "@%p1 bra stored;\ncp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r2], 128;\n"
    "cp.async.bulk.commit_group;\ncp.async.bulk.wait_group{read} 0;\nstored:\n"
)


def test_a_bulk_store_by_one_lane_needs_the_others(schedule):  # noqa: F811
    """All lanes write and fence; lane 0 stores the tile and waits; all lanes write again."""
    body = SHARED + "setp.ne.u32 %p1, %r1, 0;\n" + OWN + WRITE + "fence.proxy.async.shared::cta;\n{}" + STORE + "{}"
    body += "st.shared.u32 [%r5], %r4;\n"
    meet = "bar.warp.sync -1;\n"
    for read in ("", ".read"):
        text = body.replace("{read}", read)
        assert (run(text.format(meet, meet), np.zeros(32, np.uint32)) == np.arange(32)).all()
        with pytest.raises(Fault, match=r"a bulk store reads.*lane 1 of warp 0 wrote"):
            run(text.format("", meet), np.zeros(32, np.uint32))
        with pytest.raises(Fault, match="a bulk store started by warp 0 reads"):
            run(text.format(meet, ""), np.zeros(32, np.uint32))


def test_ldmatrix_reads_what_lanes_wrote(schedule):  # noqa: F811
    """Converging for ldmatrix is no meeting."""
    body = SHARED + "shl.b32 %r5, %r1, 4;\nadd.u32 %r5, %r2, %r5;\nst.shared.v4.u32 [%r5], {{%r1, %r1, %r1, %r1}};\n"
    body += "{}ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r7, %r8, %r9, %r10}}, [%r5];\nshl.b32 %r4, %r1, 2;\n" + OUT
    assert (run(body.format("bar.warp.sync -1;\n"), np.zeros(32, np.uint32)) == np.arange(32) // 4).all()
    with pytest.raises(Fault, match="__syncwarp"):
        run(body.format(""), np.zeros(32, np.uint32))


def test_stmatrix_is_written_by_the_lanes_whose_registers_it_takes(schedule):  # noqa: F811
    body = SHARED + "shl.b32 %r5, %r1, 4;\nadd.u32 %r5, %r2, %r5;\n"
    body += "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r5], {{%r1, %r1, %r1, %r1}};\n{}"
    body += "ld.shared.u32 %r7, [%r5];\nshl.b32 %r4, %r1, 2;\n" + OUT
    assert (run(body.format("bar.warp.sync -1;\n"), np.zeros(32, np.uint32)) == np.arange(32) % 8 * 4).all()
    with pytest.raises(Fault, match="__syncwarp"):
        run(body.format(""), np.zeros(32, np.uint32))


def test_copies_that_halves_of_a_warp_started_apart_need_one_fence(schedule):  # noqa: F811
    """cp.async by lanes 0 to 15 and by the others, each waited for; all fence; a bulk store by warp 1 takes them."""
    copy = "cp.async.cg.shared.global [%r6], [%rd4], 16;\ncp.async.commit_group;\n{}"
    body = SHARED + COPY_16 + "setp.ge.u32 %p6, %r1, 32;\n@%p6 bra copied;\nsetp.lt.u32 %p3, %r1, 16;\n"
    body += "@%p3 bra low;\n" + copy + "bra copied;\nlow:\n" + copy + "copied:\n{}bar.sync 0;\n"
    body += "setp.ne.u32 %p1, %r1, 32;\n" + STORE.replace("128;", "512;").replace("{read}", "")
    source = np.arange(128, dtype=np.uint32)
    more = {"arguments": [array_on_device(source)], "parameters": ("u64 src",), "threads": 64}
    wait, fence = "cp.async.wait_group 0;\n", "fence.proxy.async.shared::cta;\n"
    assert (run(body.format(wait, wait, fence), np.zeros(128, np.uint32), **more) == source).all()
    with pytest.raises(Fault, match=r"without a fence\.proxy\.async"):
        run(body.format(wait, wait, ""), np.zeros(128, np.uint32), **more)
    with pytest.raises(Fault) as fault:
        run(body.format(wait, "", fence), np.zeros(128, np.uint32), **more)
    assert fault.value.check in ("race", "proxy", "uninitialised")
