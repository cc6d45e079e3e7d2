"""Every check of the core sees its fault, names it, and is silent on the same program without it."""

import ctypes

import numpy as np
import pytest
import torch

from tests.emulator.device import Fault, Module, session, to_device
from tests.emulator.ptx import array_on_device, kernel, run

OWN = "mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;"
TILE = ".shared .align 16 .b8 tile[256];"


def fault_of(body: str, out: np.ndarray | None = None, **options) -> Fault:
    with pytest.raises(Fault) as raised:
        run(body, np.zeros(32, np.uint32) if out is None else out, **options)
    return raised.value


def expect(check: str, words: tuple[str, ...], faulty: str, clean: str, **options) -> None:
    fault = fault_of(faulty, **options)
    assert fault.check == check, fault
    for word in words:
        assert word in str(fault), f"{word!r} is missing in: {fault}"
    run(clean, np.zeros(32, np.uint32), **options)


def test_write_beyond_an_allocation():
    body = f"{OWN} st.global.u32 [%rd3+{{}}], %r1;"
    expect("bounds", ("32", "write of 4 bytes", "lane 31", "st.global.u32"), body.format(4), body.format(0))


def test_read_before_an_allocation():
    body = f"{OWN} ld.global.u32 %r2, [%rd3+{{}}]; st.global.u32 [%rd3], %r2;"
    expect("bounds", ("lane 0", "read of 4 bytes"), body.format(-4), body.format(0))


def test_null_pointer():
    assert "null" in str(fault_of("mov.u64 %rd1, 0; ld.global.u32 %r1, [%rd1];"))


def test_host_memory_is_no_device_memory_unless_asked():
    host = np.arange(4, dtype=np.uint32)
    body = f"{OWN} ld.param.u64 %rd4, [host]; ld.global.u32 %r2, [%rd4+8]; st.global.u32 [%rd3], %r2;"
    options = {"parameters": ("u64 host",), "arguments": (ctypes.c_uint64(host.ctypes.data),)}
    assert fault_of(body, **options).check == "bounds"
    with session(host_pointers=True):
        assert run(body, np.zeros(32, np.uint32), **options)[0] == 2


def test_gaps_between_rows_are_not_the_tensors():
    wide = torch.arange(32, dtype=torch.int32).reshape(4, 8)
    held = to_device(wide[:, :6], "x")
    body = f"{OWN} ld.param.u64 %rd4, [x]; ld.global.u32 %r2, [%rd4+{{}}]; st.global.u32 [%rd3], %r2;"
    options = {"parameters": ("u64 x",), "arguments": (held,)}
    expect("bounds", ("gap", "int32[4, 6]"), body.format(24), body.format(20), **options)
    held.free()


def test_misaligned_access():
    body = f"{OWN} ld.global.v2.u32 {{{{%r2, %r3}}}}, [%rd1+{{}}]; st.global.u32 [%rd3], %r2;"
    expect("alignment", ("multiple of 8",), body.format(4), body.format(8))


def test_misaligned_shared_access():
    body = f"{OWN} mov.u32 %r2, tile; st.shared.u64 [%r2+{{}}], %rd1;"
    expect("alignment", ("0x404",), body.format(4), body.format(8), outside=TILE)


def test_shared_memory_ends():
    body = f"{OWN} mov.u32 %r2, tile; mad.lo.s32 %r2, %r1, 8, %r2; st.shared.u32 [%r2+{{}}], %r1;"
    expect("bounds", ("shared address", "256 bytes", "lane 31"), body.format(8), body.format(4), outside=TILE)


def test_local_memory_ends():
    body = f".local .align 8 .b8 depot[16]; {OWN} mov.u64 %rd5, depot; st.local.u32 [%rd5+{{}}], %r1;"
    expect("bounds", ("local",), body.format(16), body.format(12))


def test_uninitialised_shared_memory():
    body = f"{OWN} mov.u32 %r2, tile; {{}} ld.shared.u32 %r3, [%r2+64]; st.global.u32 [%rd3], %r3;"
    clean = body.format("st.shared.u32 [%r2+64], 1; bar.warp.sync -1;")
    expect("uninitialised", ("shared",), body.format(""), clean, outside=TILE)


def test_uninitialised_global_memory():
    output = array_on_device(np.zeros(32, np.uint32), is_output=True)
    module = Module(kernel(f"{OWN} ld.global.u32 %r2, [%rd3]; st.global.u32 [%rd3], %r2;"))
    with pytest.raises(Fault) as raised:
        module.launch("k", [output])
    assert raised.value.check == "uninitialised" and "never written" in str(raised.value)
    assert output.unwritten_bytes() == 128
    Module(kernel(f"{OWN} st.global.u32 [%rd3], %r1;")).launch("k", [output])
    assert output.unwritten_bytes() == 0
    module.launch("k", [output])
    output.free()


def test_use_after_free():
    held = array_on_device(np.zeros(32, np.uint32))
    module = Module(kernel(f"{OWN} st.global.u32 [%rd3], %r1;"))
    module.launch("k", [held])
    address = ctypes.c_uint64(held.tensor.data_ptr())
    held.free()
    with pytest.raises(Fault) as raised:
        module.launch("k", [address])
    assert raised.value.check == "freed"


def test_constants_are_not_written():
    fault = fault_of("mov.u64 %rd1, table; st.u32 [%rd1], 5;", outside=".const .align 4 .u32 table[4] = {1, 2, 3, 4};")
    assert "constant" in str(fault)


def test_divergent_aligned_barrier():
    body = f"{OWN} setp.lt.u32 %p1, %r1, 16; @%p1 bra SKIP; bar.sync 0; SKIP: st.global.u32 [%rd3], %r1; {{}}"
    # lanes 0 to 15 end without the barrier: allowed for those that exit, a fault where they wait elsewhere
    expect("divergence", ("bar.sync 0",), body.format("bar.sync 1;"), body.format(""))


def test_predicated_aligned_barrier():
    fault = fault_of(f"{OWN} setp.lt.u32 %p1, %r1, 16; @%p1 bar.sync 0;")
    assert fault.check == "divergence"


def test_shuffle_from_a_lane_that_is_not_there():
    body = f"""{OWN} setp.lt.u32 %p1, %r1, 16; @!%p1 bra SKIP; shfl.sync.idx.b32 %r2, %r1, {{}}, 31, 0xffff;
        SKIP: st.global.u32 [%rd3], %r1;"""
    expect("divergence", ("no member",), body.format(20), body.format(3))


def test_deadlock_names_what_each_warp_waits_for():
    body = f"""{OWN} setp.lt.u32 %p1, %r1, 32; @%p1 bra FIRST; bar.sync 1, 64; bra DONE;
        FIRST: bar.sync {{}}, 64; DONE: ret;"""
    expect("deadlock", ("barrier 2", "barrier 1", "warp 0", "warp 1"), body.format(2), body.format(1), threads=64)


def test_barrier_counts_must_agree():
    body = (
        f"{OWN} setp.lt.u32 %p1, %r1, 32; @%p1 bra FIRST; bar.sync 1, 64; bra DONE; FIRST: bar.sync 1, {{}}; DONE: ret;"
    )
    expect("barrier", ("96", "64"), body.format(96), body.format(64), threads=96 - 32)


def test_cluster_barrier_protocol():
    assert fault_of("barrier.cluster.wait;", threads=1).check == "barrier"
    assert fault_of("barrier.cluster.arrive; barrier.cluster.arrive;", threads=1).check == "barrier"


def test_endless_kernel():
    with session(instruction_limit=100_000):
        fault = fault_of("LOOP: bra LOOP;")
    assert fault.check == "endless"


def test_trap():
    assert fault_of(f"{OWN} setp.eq.u32 %p1, %r1, 5; @%p1 trap;").check == "trap"


def test_unknown_instruction_is_named():
    fault = fault_of(f"{OWN} frobnicate.u32 %r2, %r1;")
    assert fault.check == "instruction" and "frobnicate" in str(fault) and "PTX line" in str(fault)
    assert "modifier .wrap" in str(fault_of(f"{OWN} add.wrap.u32 %r2, %r1, %r1;"))


def test_operand_of_the_wrong_width():
    assert "bytes" in str(fault_of(f"{OWN} add.u32 %r2, %r1, %rd1;"))


def test_another_architecture_is_refused():
    with pytest.raises(Fault, match="sm_80"):
        Module(kernel("ret;").replace("sm_90a", "sm_80"))


def test_syntax_errors_are_sentences_with_a_line():
    with pytest.raises(Fault, match="PTX line"):
        Module(kernel("ret;") + "\n.frob 1")


@pytest.mark.parametrize(("options", "word"), [
    ({"threads": 2048}, "threads"), ({"threads": 0}, "threads"), ({"blocks": (1, 70000)}, "65535"),
    ({"shared_bytes": 300_000}, "shared"),
    ({"blocks": 3, "cluster": 2}, "multiple"), ({"blocks": 16, "cluster": 16}, "16"),
])  # fmt: skip
def test_launches_beyond_the_limits(options, word):
    assert word in str(fault_of("ret;", **options))


def test_a_launch_after_a_fault_is_clean():
    fault_of("mov.u64 %rd1, 0; ld.global.u32 %r1, [%rd1];")
    assert (run(f"{OWN} st.global.u32 [%rd3], %r1;", np.zeros(32, np.uint32)) == np.arange(32)).all()
