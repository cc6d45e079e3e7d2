"""The stand-in for the extension: an output that a kernel leaves unwritten is an error."""

import ctypes

import pytest
import torch

from tests.emulator.device import Module
from tests.emulator.harness_target import UnwrittenOutput, _EmulatedNative
from tests.emulator.ptx import kernel

STORE = """mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r1;"""


class Native:
    """One op: writes the thread's number to the first `threads` words of out."""

    def __init__(self, threads: int):
        def fill(x, out):
            Module(kernel(STORE)).launch("k", [ctypes.c_uint64(out.data_ptr())], threads=threads)

        fill.__doc__ = "fill(x: Tensor, out: Tensor) -> None"
        self.fill = fill


def call(threads: int, allocate=lambda: torch.full((64,), -1, dtype=torch.int32)) -> torch.Tensor:
    native = _EmulatedNative(Native(threads))
    out = native.note_outputs(allocate)()
    native.fill(torch.zeros(3), out)
    return out


def test_an_output_that_is_all_written_comes_back():
    assert torch.equal(call(64), torch.arange(64, dtype=torch.int32))


@pytest.mark.parametrize("threads", [1, 32, 63])
def test_an_output_that_is_left_unwritten_is_an_error(threads):
    with pytest.raises(UnwrittenOutput, match=rf"fill left {4 * (64 - threads)} bytes of out unwritten"):
        call(threads)


def test_what_lies_between_the_rows_of_an_output_may_stay_unwritten():
    out = call(16, lambda: torch.full((2, 16), -1, dtype=torch.int32)[:1, :])
    assert torch.equal(out, torch.arange(16, dtype=torch.int32)[None])


def test_a_tensor_that_the_op_did_not_allocate_may_stay_as_it_was():
    native, out = _EmulatedNative(Native(32)), torch.full((64,), -1, dtype=torch.int32)
    native.fill(torch.zeros(3), out)
    assert out[:32].tolist() == list(range(32)) and (out[32:] == -1).all()
