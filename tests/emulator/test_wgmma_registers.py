"""Registers of a wgmma under way: its accumulators are not touched, its fragments of A not written, before the wait."""

import pytest

from tests.emulator.device import Fault
from tests.emulator.test_async import _wgmma

WAIT = "wgmma.wait_group.sync.aligned 0;\n"
FIRST = "%p11, 1, 1, 0;\n"  # the end of the first of two wgmma, with A in registers


def run(before_wait="", after_wait="", registers_a=False, edit=lambda body: body):
    def place(body):
        assert body.count(WAIT) == 1
        return edit(body.replace(WAIT, before_wait + WAIT + after_wait))

    _wgmma("bf16", 16, registers_a=registers_a, edit=place)


TOUCHES = {
    "add": ("add.f32 %f1, %d0, %d0;\n", "reads %d0, an accumulator of the wgmma"),
    "store": ("st.global.f32 [%rd1], %d3;\n", "reads %d3, an accumulator"),
    "zero": ("mov.f32 %d7, 0f00000000;\n", "writes %d7, an accumulator"),
    "overwrite": ("mov.f32 %f1, 0f3F800000;\nmov.f32 %d7, %f1;\n", "writes %d7, an accumulator"),
    "convert": ("cvt.rn.bf16x2.f32 %r40, %d1, %d2;\n", "reads %d[12], an accumulator"),
    "use of a copy": ("mov.f32 %f1, %d0;\nadd.f32 %f2, %f1, %f1;\n", "reads %f1, an accumulator"),
    "use of a copy's copy": ("mov.f32 %f1, %d0;\nmov.f32 %f2, %f1;\nadd.f32 %f2, %f2, %f2;\n", "reads %f2"),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_accumulators_are_not_touched_before_the_wait(touch):
    body, words = TOUCHES[touch]
    with pytest.raises(Fault, match=words) as fault:
        run(before_wait=body)
    assert fault.value.check == "wgmma" and "has not waited" in str(fault.value)


def test_waiting_for_fewer_groups_is_not_waiting():
    with pytest.raises(Fault, match=r"reads %d0, an accumulator .*has not waited"):
        run(edit=lambda body: body.replace(WAIT, WAIT.replace(" 0;", " 1;")))


def test_accumulators_are_free_after_the_wait():
    run(after_wait="add.f32 %f1, %d0, %d0;\nmov.f32 %f2, %d1;\n")


def test_a_copy_is_no_use():
    run(before_wait="mov.f32 %f1, %d0;\n", after_wait="add.f32 %f2, %f1, %f1;\n")


@pytest.mark.parametrize("overwrite", ["mov.f32 %f1, %f2;\n", "add.f32 %f1, %f2, %f2;\n", "mov.f32 %f1, 0f00000000;\n"])
def test_a_copy_that_was_overwritten_is_free(overwrite):
    run(before_wait="mov.f32 %f1, %d0;\n" + overwrite + "add.f32 %f2, %f1, %f1;\n")


A_WRITES = {
    "a constant": "mov.b32 %r30, 0;\n",
    "a copy": "mov.b32 %r33, %r5;\n",
    "arithmetic": "add.u32 %r31, %r31, 1;\n",
}


@pytest.mark.parametrize("write", A_WRITES)
def test_fragments_of_a_are_not_written_before_the_wait(write):
    run(after_wait=A_WRITES[write], registers_a=True)
    with pytest.raises(Fault, match=r"writes %r3\d, a fragment of A of the wgmma") as fault:
        run(before_wait=A_WRITES[write], registers_a=True)
    assert fault.value.check == "wgmma"


def test_fragments_of_a_may_be_read():
    run(before_wait="add.u32 %r40, %r30, %r31;\n", registers_a=True)


def test_accumulators_under_way_are_no_fragments_of_a():
    def edit(body):
        declared = body.replace(".reg .f32 %d<8>;", ".reg .b32 %d<8>;")
        head, second = declared.split(FIRST, 1)
        return head + FIRST + second.replace("{%r30, %r31, %r32, %r33}", "{%d0, %d1, %d2, %d3}", 1)

    with pytest.raises(Fault, match="reads %d0, an accumulator") as fault:
        run(registers_a=True, edit=edit)
    assert fault.value.check == "wgmma"
