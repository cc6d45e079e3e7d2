"""How much the emulator executes in a second of one core: `python -m tests.emulator --speed`.

Seconds are those that this process computes for, whatever else runs on the machine, and the least of a few runs. A
report and no test: nothing is judged by it.
"""

import time
from collections.abc import Callable

import numpy as np

import glm5_ops
from glm5_ops.cli._output import Output
from glm5_ops.workloads import all_workloads
from tests.emulator.device import Module, counting, session
from tests.emulator.harness_target import emulated
from tests.emulator.ptx import array_on_device, kernel

RUNS = 3
BLOCKS, THREADS = 4, 256

# Bodies that are repeated in a loop: %r10 to %r17 and %f10 to %f17 hold values, %r1 is the lane, %r9 the turn.
INTEGER = (
    "mad.lo.s32 %r10, %r11, %r12, %r13;\nxor.b32 %r11, %r10, %r14;\nshl.b32 %r12, %r11, 3;\n"
    "add.s32 %r13, %r12, %r10;\nmin.s32 %r14, %r13, %r11;\nand.b32 %r15, %r14, 65535;\n"
    "setp.lt.s32 %p3, %r15, %r9;\nselp.b32 %r16, %r10, %r15, %p3;\n"
)
FLOATING = (
    "fma.rn.f32 %f10, %f11, %f12, %f13;\nadd.f32 %f11, %f10, %f14;\nmul.f32 %f12, %f11, %f15;\n"
    "max.f32 %f13, %f12, %f10;\n"
    "fma.rn.f32 %f14, %f13, %f12, %f16;\n"
    "sub.f32 %f15, %f14, %f11;\nmin.f32 %f16, %f15, %f17;\nabs.f32 %f17, %f16;\n"
)
HALF = "and.b32 %r17, %r1, 1;\nsetp.eq.u32 %p4, %r17, 0;\n@%p4 bra over;\n" + INTEGER + "over:\n"
SHARED = (
    "st.shared.u32 [%r5], %r10;\nbar.warp.sync -1;\nld.shared.u32 %r11, [%r6];\nbar.warp.sync -1;\n"
    "st.shared.v4.u32 [%r7], {%r10, %r11, %r12, %r13};\nbar.sync 0;\n"
    "ld.shared.v4.u32 {%r12, %r13, %r14, %r15}, [%r8];\nbar.sync 0;\n"
)
GLOBAL = (
    "ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd5];\nst.global.v4.u32 [%rd6], {%r10, %r11, %r12, %r13};\n"
    "add.s64 %rd5, %rd5, 4096;\nadd.s64 %rd6, %rd6, 4096;\n"
)
TURNS_OF_GLOBAL = 64  # 4096 bytes of a block in each
KERNELS = {
    "integer arithmetic": (INTEGER, 4000),
    "f32 arithmetic": (FLOATING, 4000),
    "integer arithmetic, half of the lanes": (HALF, 4000),
    "shared memory, with barriers": (SHARED, 400),
    "global memory": (GLOBAL, TURNS_OF_GLOBAL),
}
# Ops whole: their kernels with copies, barriers, wgmma and what stands around them.
OPS = {
    "gemm": "m=256,n=256,k=1024",
    "fp8_gemm": "m=256,n=256,k=1024",
    "indexer_logits": "tokens=64,keys=512",
    "topk_select": "rows=64,keys=8192,topk=2048",
    "quantize_fp8": "rows=512,cols=2048",
}


def _text(body: str, turns: int) -> str:
    begin = (
        ".shared .align 16 .b8 smem[8192];\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, smem;\nld.param.u64 %rd1, [out];\n"
        "ld.param.u64 %rd2, [in];\nshl.b32 %r3, %r1, 2;\nadd.u32 %r5, %r2, %r3;\nxor.b32 %r4, %r3, 4;\n"
        "add.u32 %r6, %r2, %r4;\nshl.b32 %r3, %r1, 4;\nadd.u32 %r7, %r2, %r3;\nxor.b32 %r4, %r3, 1024;\n"
        "add.u32 %r7, %r7, 4096;\nadd.u32 %r8, %r2, %r4;\nadd.u32 %r8, %r8, 4096;\nmov.u32 %r20, %ctaid.x;\n"
        f"mad.lo.u32 %r3, %r20, {4096 * TURNS_OF_GLOBAL}, %r3;\ncvt.u64.u32 %rd4, %r3;\n"
        "add.s64 %rd5, %rd2, %rd4;\nadd.s64 %rd6, %rd1, %rd4;\n"
    )
    values = "".join(f"mov.u32 %r{i}, %r1;\ncvt.rn.f32.u32 %f{i}, %r1;\n" for i in range(10, 18))
    loop = f"mov.u32 %r9, 0;\nturn:\n{body}add.u32 %r9, %r9, 1;\nsetp.lt.u32 %p2, %r9, {turns};\n@%p2 bra turn;\n"
    return kernel(begin + values + loop, ("u64 out", "u64 in"))


def _measured(run: Callable[[], None]) -> tuple[float, list[dict]]:
    """Seconds of this process, and what was executed, which is always the same."""
    with counting() as launches:
        run()
    seconds = []
    for _ in range(RUNS):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return min(seconds), launches


def _row(name: str, seconds: float, launches: list[dict]) -> list[str]:
    lanes = sum(count["lanes"] for each in launches for count in each["instructions"].values())
    adds = sum(n for each in launches for kind, n in each["multiply_adds"].items() if kind != "fma")
    moved = sum(path["bytes"] for each in launches for path in each["memory"].values())
    rates = [f"{amount / seconds / 1e6:.0f}" if amount else "-" for amount in (lanes, adds, moved)]
    return [name, f"{lanes / 1e6:.2f}", f"{seconds:.3f}", *rates]


def _of_kernel(body: str, turns: int) -> tuple[float, list[dict]]:
    values = np.zeros(BLOCKS * 1024 * TURNS_OF_GLOBAL, np.uint32)
    out, source = array_on_device(values), array_on_device(values)
    module = Module(_text(body, turns))
    try:
        with session(threads=1):
            return _measured(lambda: module.launch("k", [out, source], blocks=BLOCKS, threads=THREADS))
    finally:
        out.free()
        source.free()


def _of_op(op: str, case: str) -> tuple[float, list[dict]]:
    workload = all_workloads()[op]
    inputs = workload.case.parse(case).inputs("cpu")
    with emulated():
        return _measured(lambda: workload.run(getattr(glm5_ops, op), inputs))


def report(output: Output) -> None:
    rows = [_row(name, *_of_kernel(*each)) for name, each in KERNELS.items()]
    rows += [_row(f"{op} {case}", *_of_op(op, case)) for op, case in OPS.items()]
    output.table(["", "M lane instructions", "CPU seconds", "M a second", "M multiply-adds a second", "MB a second"],
                 rows, "one core's work; bytes are those of the lanes and of bulk copies")  # fmt: skip
