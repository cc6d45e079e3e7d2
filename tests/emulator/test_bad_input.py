"""What cannot be run is refused in a sentence; what never ends, ends."""

import re

import numpy as np
import pytest

from tests.emulator.build import ROOT
from tests.emulator.device import Fault, Module, call, session
from tests.emulator.ptx import HEAD, kernel, run

OWN = "mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;"
BARRIER = ".shared .align 8 .b64 barrier;"
ENDLESS = {
    "a loop": "LOOP: bra LOOP;",
    "a loop that sleeps": "LOOP: nanosleep.u32 20; bra LOOP;",
    "a wait for a flag in global memory": """LOOP: ld.volatile.global.u32 %r2, [%rd1+64]; setp.eq.u32 %p1, %r2, 0;
        @%p1 bra LOOP;""",
    "a lock that is never given back": """LOOP: atom.global.cas.b32 %r2, [%rd1], 0, 1; setp.ne.u32 %p1, %r2, 0;
        @%p1 bra LOOP;""",
    "lanes that leave one after the other": "LOOP: setp.ne.u32 %p1, %r1, 7; @%p1 bra LOOP;",
    "a barrier that is tested": """setp.ne.u32 %p1, %r1, 0; @!%p1 mbarrier.init.shared.b64 [barrier], 5; bar.sync 0;
        LOOP: mbarrier.test_wait.parity.shared.b64 %p2, [barrier], 0; @!%p2 bra LOOP;""",
    "a barrier that is waited for in turns": """setp.ne.u32 %p1, %r1, 0; @!%p1 mbarrier.init.shared.b64 [barrier], 5;
        bar.sync 0; LOOP: mbarrier.try_wait.parity.shared.b64 %p2, [barrier], 0; @!%p2 bra LOOP;""",
    "a block barrier again and again": "LOOP: bar.sync 0; bra LOOP;",
    "guarded instructions that do nothing": "setp.lt.u32 %p1, %r1, 0; LOOP: @%p1 add.u32 %r2, %r2, 1; bra LOOP;",
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("schedule", ["fair", "random", "lowest"])
def test_a_kernel_that_never_ends_is_ended(name, schedule):
    with session(instruction_limit=60_000, schedule=schedule), pytest.raises(Fault) as raised:
        run(f"{OWN} {ENDLESS[name]}", np.zeros(64, np.uint32), threads=64, blocks=3, outside=BARRIER)
    assert raised.value.check in ("endless", "deadlock")
    assert "60000" in str(raised.value) or "wait" in str(raised.value)


def test_every_instruction_names_its_section_of_the_manual():
    entries = [line.split("\t") for line in call("instructions").decode().splitlines()]
    assert len(entries) > 100 and {"add", "wgmma.mma_async", "cp.async.bulk.tensor"} <= {name for name, _ in entries}
    wrong = [
        (name, section) for name, section in entries if not re.fullmatch(r"9\.7\.[1-9]\d?(\.[1-9]\d?){1,3}", section)
    ]
    assert wrong == []
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_:]+)*", name) for name, _ in entries)


TENSOR = "[%r5], [%rd5, {%r2, %r3, %r4}], [%r6], {%rs1};"
ABSENT = {
    "im2col copies": "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes " + TENSOR,
    "sparse wgmma": "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd4, %rd5, %r2, 0, "
    "%p1, 1, 1, 0, 0;",
    "`.sat` to f16": "cvt.rn.sat.f16.f32 %rs1, %f1;",
    "recursion": "call again;",
    "textures": "tex.1d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [image, {%r1}];",
    "`malloc` in kernels": "call malloc;",
}
FUNCTIONS = """.extern .func malloc;
.func again { .reg .pred %p<2>; call again; ret; }"""


def listed() -> list[str]:
    text = " ".join((ROOT / "docs" / "emulator.md").read_text().split())
    return re.search(r"Not there yet, each an error with its name: (.*?)\. ", text)[1].split(", ")


def test_the_manual_lists_only_what_is_known_here():
    assert set(listed()) <= set(ABSENT)


@pytest.mark.parametrize("name", listed())
def test_what_the_manual_says_is_not_there_is_refused_by_name(name):
    with pytest.raises(Fault) as raised:
        run(f"{OWN} setp.eq.u32 %p1, %r1, 0; {ABSENT[name]}", np.zeros(32, np.uint32), outside=FUNCTIONS)
    assert raised.value.check in ("instruction", "control"), raised.value
    first = ABSENT[name].split("%")[0].split()[0].split(".")[0]
    assert first in str(raised.value)


@pytest.mark.parametrize(("text", "words"), [
    ("", ".target"), (HEAD.replace("9.0", "9.0\n.frob"), "frob"), (kernel("ret;")[:-4], "PTX line"),
    (kernel("ret;").replace("sm_90a", "sm_100a"), "sm_100a"), (HEAD.replace("64", "32"), "64-bit"),
    (kernel("add.u32 %r1, %r2, %q9; ret;"), "%q9"), (kernel("bra NOWHERE; ret;"), "NOWHERE"),
    (kernel("ld.global.u32 %r1, [nothing]; ret;"), "nothing"),
])  # fmt: skip
def test_ptx_that_is_none(text, words):
    with pytest.raises(Fault) as raised:
        Module(text).launch("k", [])
    assert words in str(raised.value)
