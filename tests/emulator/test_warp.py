"""Operations among lanes, divergence, calls, barriers and clusters."""

import ctypes

import numpy as np
import pytest

from tests.emulator.device import session
from tests.emulator.ptx import run

OWN = "mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;"
LANES = np.arange(32, dtype=np.uint32)


def one_warp(body: str, **options) -> np.ndarray:
    return run(f"{OWN} {body} st.global.u32 [%rd3], %r2;", np.zeros(32, np.uint32), **options)


def test_shuffles():
    value = "mul.lo.s32 %r3, %r1, 7;"
    assert (one_warp(f"{value} shfl.sync.bfly.b32 %r2, %r3, 5, 31, -1;") == (LANES ^ 5) * 7).all()
    assert (one_warp(f"{value} shfl.sync.idx.b32 %r2, %r3, 9, 31, -1;") == 63).all()
    up = np.where(LANES >= 3, LANES - 3, LANES) * 7
    assert (one_warp(f"{value} shfl.sync.up.b32 %r2, %r3, 3, 0, -1;") == up).all()
    down = np.where(LANES + 3 < 32, LANES + 3, LANES) * 7
    assert (one_warp(f"{value} shfl.sync.down.b32 %r2, %r3, 3, 31, -1;") == down).all()


def test_shuffles_within_segments():
    # segments of 8: mask 0x18 in bits 8-12
    got = one_warp("shfl.sync.down.b32 %r2|%p1, %r1, 2, 0x181f, -1; @!%p1 mov.u32 %r2, 99;")
    assert (got == np.where(LANES % 8 < 6, LANES + 2, 99)).all()
    got = one_warp("shfl.sync.idx.b32 %r2, %r1, 10, 0x181f, -1;")
    assert (got == LANES // 8 * 8 + 2).all()


def test_votes_and_elections():
    odd = "and.b32 %r3, %r1, 1; setp.eq.u32 %p1, %r3, 1;"
    assert (one_warp(f"{odd} vote.sync.ballot.b32 %r2, %p1, -1;") == 0xAAAAAAAA).all()
    assert (one_warp(f"{odd} vote.sync.any.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2;") == 1).all()
    assert (one_warp(f"{odd} vote.sync.all.pred %p2, !%p1, -1; selp.u32 %r2, 1, 0, %p2;") == 0).all()
    assert (
        one_warp("elect.sync %r4|%p1, -1; selp.u32 %r2, 7, 0, %p1; add.s32 %r2, %r2, %r4;")
        == np.where(LANES == 0, 7, 0)
    ).all()
    assert (one_warp("activemask.b32 %r2;") == 0xFFFFFFFF).all()


def test_reductions_and_matches():
    assert (one_warp("redux.sync.add.u32 %r2, %r1, -1;") == 496).all()
    assert (one_warp("sub.s32 %r3, 5, %r1; redux.sync.min.s32 %r2, %r3, -1;").view(np.int32) == -26).all()
    assert (one_warp("redux.sync.xor.b32 %r2, %r1, -1;") == 0).all()
    got = one_warp("and.b32 %r3, %r1, 3; match.any.sync.b32 %r2, %r3, -1;")
    assert (got == np.array([0x11111111 << (i % 4) for i in range(32)], np.uint32)).all()


def test_divergent_branches_reconverge():
    got = one_warp("""setp.lt.u32 %p1, %r1, 10; @%p1 bra LOW; mul.lo.s32 %r2, %r1, 100; bra.uni JOIN;
        LOW: add.s32 %r2, %r1, 1; JOIN: activemask.b32 %r4; setp.eq.u32 %p2, %r4, -1; @!%p2 mov.u32 %r2, 12345;""")
    assert (got == np.where(LANES < 10, LANES + 1, LANES * 100)).all()


def test_loops_of_different_length():
    got = one_warp("""mov.u32 %r2, 0; mov.u32 %r3, 0;
        LOOP: setp.ge.u32 %p1, %r3, %r1; @%p1 bra DONE; add.s32 %r2, %r2, %r3; add.s32 %r3, %r3, 1; bra LOOP;
        DONE: """)
    assert (got == LANES * (LANES - 1) // 2).all()


def test_scopes_shadow_registers_and_labels():
    block = """{{ .reg .pred P1; .reg .b32 t; mov.u32 t, 0; WAIT: add.u32 t, t, {step}; setp.lt.u32 P1, t, 20;
        @P1 bra WAIT;
        add.u32 %r2, %r2, t; }}"""
    got = one_warp("mov.u32 %r2, 0;" + block.format(step=3) + block.format(step=7))
    assert (got == 21 + 21).all()


def test_a_lane_waits_in_a_spin_for_another():
    # lane 0 takes a lock that lane 31 releases: the one that spins must not hold up the one that is ahead
    body = """setp.eq.u32 %p1, %r1, 31; @%p1 bra RELEASE;
        SPIN: ld.volatile.global.u32 %r4, [%rd1+124]; setp.eq.u32 %p2, %r4, 0; @%p2 bra SPIN; bra JOIN;
        RELEASE: st.volatile.global.u32 [%rd1+124], 5; JOIN: mov.u32 %r2, 5;"""
    assert (one_warp(body) == 5).all()


FUNCTION = """.func (.param .b32 result) twice(.param .b32 x) { .reg .b32 %q<4>; ld.param.b32 %q1, [x];
        add.s32 %q1, %q1, %q1;
    st.param.b32 [result], %q1; ret; }
.func (.param .b32 result) thrice(.param .b32 x) { .reg .b32 %q<4>; ld.param.b32 %q1, [x];
    { .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %q1; call.uni (r0), twice, (p0); ld.param.b32 %q2, [r0]; }
    add.s32 %q1, %q1, %q2; st.param.b32 [result], %q1; ret; }"""


def test_calls_also_when_lanes_diverge():
    call = """{{ .param .b32 param0; .param .b32 retval0; st.param.b32 [param0], %r1; call (retval0), {f}, (param0);
        ld.param.b32 %r2, [retval0]; }}"""
    body = (
        "setp.lt.u32 %p1, %r1, 7; @%p1 bra A; "
        + call.format(f="thrice")
        + " bra B; A: "
        + call.format(f="twice")
        + " B: "
    )
    assert (one_warp(body, outside=FUNCTION) == np.where(LANES < 7, LANES * 2, LANES * 3)).all()


@pytest.mark.parametrize("schedule", ["fair", "random", "late", "lowest", "highest"])
def test_barriers_order_all_warps(schedule):
    body = f"""{OWN} mov.u32 %r2, tile; mad.lo.s32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], %r1; bar.sync 0;
        sub.s32 %r4, 255, %r1; mad.lo.s32 %r5, %r4, 4, %r2; ld.shared.u32 %r6, [%r5]; bar.sync 1, 256;
        st.global.u32 [%rd3], %r6;"""
    with session(seed=3, schedule=schedule):
        got = run(body, np.zeros(256, np.uint32), threads=256, outside=".shared .align 4 .b8 tile[1024];")
    assert (got == 255 - np.arange(256)).all()


def test_named_barriers_between_producer_and_consumer():
    # the first two warps fill and arrive, the others wait
    body = f"""{OWN} mov.u32 %r2, tile; setp.ge.u32 %p1, %r1, 64; @%p1 bra CONSUME; mad.lo.s32 %r3, %r1, 4, %r2;
        add.s32 %r4, %r1, 1000; st.shared.u32 [%r3], %r4; bar.arrive 2, 128; st.global.u32 [%rd3], %r1; ret;
        CONSUME: bar.sync 2, 128; sub.s32 %r5, %r1, 64; mad.lo.s32 %r3, %r5, 4, %r2; ld.shared.u32 %r6, [%r3];
        st.global.u32 [%rd3], %r6;"""
    got = run(body, np.zeros(128, np.uint32), threads=128, outside=".shared .align 4 .b8 tile[256];")
    assert (got == np.concatenate([np.arange(64), 1000 + np.arange(64)])).all()


def test_barrier_reductions():
    body = f"""{OWN} setp.lt.u32 %p1, %r1, 40; barrier.cta.red.popc.aligned.u32 %r2, 0, %p1;
        bar.red.or.pred %p2, 1, %p1;
        bar.red.and.pred %p3, 2, %p1; selp.u32 %r3, 1000, 0, %p2; selp.u32 %r4, 5000, 0, %p3;
        add.s32 %r2, %r2, %r3; add.s32 %r2, %r2, %r4;
        st.global.u32 [%rd3], %r2;"""
    assert (run(body, np.zeros(64, np.uint32), threads=64) == 1040).all()


def test_a_warp_that_exits_is_not_waited_for():
    body = f"{OWN} setp.lt.u32 %p1, %r1, 32; @%p1 exit; bar.sync 0; st.global.u32 [%rd3], %r1;"
    assert run(body, np.zeros(96, np.uint32), threads=96).tolist() == [0] * 32 + list(range(32, 96))


@pytest.mark.parametrize("schedule", ["fair", "random", "highest"])
def test_clusters_share_their_shared_memory(schedule):
    body = """mov.u32 %r1, %cluster_ctarank; mov.u32 %r2, slot; add.s32 %r3, %r1, 100; st.shared.u32 [%r2], %r3;
        barrier.cluster.arrive.release; barrier.cluster.wait.acquire; add.s32 %r4, %r1, 1; and.b32 %r4, %r4, 3;
        mapa.shared::cluster.u32 %r5, %r2, %r4; ld.shared::cluster.u32 %r6, [%r5]; mov.u32 %r7, %ctaid.x;
        ld.param.u64 %rd1, [out];
        mul.wide.u32 %rd2, %r7, 4; add.s64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r6; barrier.cluster.arrive;
        barrier.cluster.wait;"""
    with session(seed=1, schedule=schedule):
        got = run(body, np.zeros(8, np.uint32), threads=1, blocks=8, cluster=4, outside=".shared .align 4 .u32 slot;")
    assert got.tolist() == [101, 102, 103, 100] * 2


def test_special_registers():
    body = """mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %ctaid.y; mov.u32 %r4, %ntid.x;
        mov.u32 %r5, %nctaid.x; mov.u32 %r6, %ctaid.x;
        mad.lo.s32 %r7, %r2, %r4, %r1; mad.lo.s32 %r8, %r3, %r5, %r6; mad.lo.s32 %r9, %r8, 12, %r7;
        ld.param.u64 %rd1, [out];
        mul.wide.u32 %rd2, %r9, 4; add.s64 %rd1, %rd1, %rd2; mov.u32 %r10, %laneid;
        mad.lo.s32 %r10, %r9, 100, %r10; st.global.u32 [%rd1], %r10;"""
    got = run(body, np.zeros(72, np.uint32), threads=(4, 3), blocks=(2, 3))
    assert (got == np.arange(72) * 100 + np.arange(72) % 12).all()


def test_blocks_of_a_grid_barrier_are_on_the_device_together():
    # every block counts up and spins until all have: only possible where all are resident
    body = """ld.param.u64 %rd1, [out]; atom.global.add.u32 %r1, [%rd1], 1; SPIN: ld.volatile.global.u32 %r2, [%rd1];
        setp.lt.u32 %p1, %r2, 20; @%p1 bra SPIN; ld.param.u32 %r3, [unused];"""
    got = run(
        body, np.zeros(1, np.uint32), threads=1, blocks=20, parameters=("u32 unused",), arguments=(ctypes.c_uint32(1),)
    )
    assert got[0] == 20
