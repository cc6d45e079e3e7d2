"""Tensor maps that a kernel makes or changes: tensormap.replace, tensormap.cp_fenceproxy, fence.proxy.tensormap."""

import ctypes

import numpy as np
import pytest

from tests.emulator.device import Fault
from tests.emulator.ptx import array_on_device, run
from tests.emulator.test_async import INIT, LOAD, ONE, OUT, SHARED, WAIT, address_of, tensor_map

RANDOM = np.random.default_rng(6)
PARAMETERS = ("u64 src", "u64 slot", "u64 other")
# The map of `src` in shared memory, at %r4.
COPY = (
    SHARED + INIT + "ld.param.u64 %rd2, [src];\nld.param.u64 %rd5, [slot];\nld.param.u64 %rd6, [other];\n"
    "add.u32 %r4, %r2, 4096;\nshl.b32 %r5, %r1, 2;\nadd.u32 %r6, %r4, %r5;\n"
    "cvt.u64.u32 %rd3, %r5;\nadd.u64 %rd4, %rd2, %rd3;\nld.global.b32 %r7, [%rd4];\nst.shared.b32 [%r6], %r7;\n"
    "bar.warp.sync 0xffffffff;\n"
)
IN_SHARED = "tensormap.replace.tile.{}.shared::cta.b1024.b{} [%r4], {};\n"
REPLACE = (
    ONE + "@%p1 bra replaced;\n" + IN_SHARED.format("global_address", 64, "%rd6")
    + IN_SHARED.format("global_dim", 32, "0, 24") + IN_SHARED.format("global_dim", 32, "1, 5")
    + "mov.u64 %rd7, 64;\n" + IN_SHARED.format("global_stride", 64, "0, %rd7")
    + "replaced:\nbar.warp.sync 0xffffffff;\n"
)  # fmt: skip
PUBLISH = "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%rd5], [%r4], 128;\n"
ACQUIRE = "fence.proxy.tensormap::generic.acquire.gpu [%rd5], 128;\n"
TILE = (
    "mov.s32 %r30, 8;\nmov.s32 %r31, 2;\ncp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
    "[%r2], [%rd5, {%r30, %r31}], [%r3];"
)
USE = LOAD.format(bytes=512, copy=TILE) + WAIT + OUT.format(words=128)


class Tensors:
    """A map of a tensor [8, 16] of bf16 with boxes of 16 x 16, room for another map, and a tensor [5, 24 of 32]."""

    def __init__(self):
        self.values = RANDOM.integers(0, 2**16, (5, 32), dtype=np.uint16)
        self.first = array_on_device(np.zeros((8, 16), np.uint16))
        self.other = array_on_device(self.values)
        self.map = tensor_map(address_of(self.first), 9, [16, 8], [32], [16, 16])
        self.slot = array_on_device(np.zeros(128, np.uint8))

    def run(self, body, slot=None, **options):
        slot = slot or self.slot
        arguments = [self.map, slot, ctypes.c_uint64(address_of(self.other))]
        return run(body, np.zeros(128, np.uint32), arguments=arguments, parameters=PARAMETERS, **options)

    def expected(self):
        """16 x 16 from row 2, column 8 of the 5 x 24."""
        tile = np.zeros((16, 16), np.uint16)
        tile[:3] = self.values[2:5, 8:24]
        return tile.reshape(-1).view(np.uint32)


def caught(body, *, threads=32, **options):
    with pytest.raises(Fault) as fault:
        Tensors().run(body, threads=threads, **options)
    return fault.value.check, str(fault.value)


def test_a_copy_goes_by_the_changed_map():
    tensors = Tensors()
    got = tensors.run(COPY + REPLACE + PUBLISH + ACQUIRE + USE)
    np.testing.assert_array_equal(got, tensors.expected())


def test_a_map_made_from_zeros():
    tensors = Tensors()
    fields = [("global_address", 64, "%rd6"), ("rank", 32, "1"), ("box_dim", 32, "0, 16"), ("box_dim", 32, "1, 16"),
              ("global_dim", 32, "0, 24"), ("global_dim", 32, "1, 5"), ("global_stride", 64, "0, 64"),
              ("element_stride", 32, "0, 1"), ("element_stride", 32, "1, 1"), ("elemtype", 32, "10"),
              ("interleave_layout", 32, "0"), ("swizzle_mode", 32, "0"), ("fill_mode", 32, "0")]  # fmt: skip
    make = "".join(IN_SHARED.format(*field) for field in fields)
    make = ONE + "@%p1 bra made;\n" + make + "made:\nbar.warp.sync 0xffffffff;\n"
    body = COPY.replace("st.shared.b32 [%r6], %r7", "st.shared.b32 [%r6], 0") + make + PUBLISH + ACQUIRE + USE
    np.testing.assert_array_equal(tensors.run(body), tensors.expected())
    for field in fields:
        if field[0] in ("rank", "box_dim", "element_stride"):
            check, sentence = caught(body.replace(IN_SHARED.format(*field), ""))
            assert check == "tensor map", f"without {field}: {sentence}"


IN_GLOBAL = (
    ONE + "@%p1 bra changed;\ntensormap.replace.tile.global_address.global.b1024.b64 [%rd5], %rd6;\n{}"
    "changed:\nbar.warp.sync 0xffffffff;\n"
)


def test_a_map_changed_in_global_memory():
    tensors = Tensors()
    begin = COPY + REPLACE.replace(IN_SHARED.format("global_address", 64, "%rd6"), "") + PUBLISH
    release = "fence.proxy.tensormap::generic.release.gpu;\n"
    got = tensors.run(begin + IN_GLOBAL.format(release) + ACQUIRE + USE)
    np.testing.assert_array_equal(got, tensors.expected())
    check, sentence = caught(begin + IN_GLOBAL.format("") + ACQUIRE + USE)
    assert check == "proxy" and "not released" in sentence
    check, sentence = caught(begin + ACQUIRE + IN_GLOBAL.format(release) + USE)
    assert check == "proxy" and "not acquired since" in sentence


def test_a_changed_map_must_be_acquired():
    check, sentence = caught(COPY + REPLACE + PUBLISH + USE)
    assert check == "proxy" and "not acquired" in sentence
    check, _ = caught(COPY + REPLACE + ACQUIRE + PUBLISH + USE)
    assert check == "proxy"


def test_an_acquire_by_another_warp_counts_once_it_is_ordered():
    # warp 1 changes and acquires, warp 0 uses
    second = "setp.lt.u32 %p7, %r1, 32;\n@%p7 bra waiting;\n{}waiting:\n"
    begin = COPY.replace("shl.b32 %r5, %r1, 2", "and.b32 %r5, %r1, 31;\nshl.b32 %r5, %r5, 2").replace(
        "bar.warp.sync 0xffffffff", "bar.sync 0"
    )
    begin = begin.replace("st.shared.b32", "setp.lt.u32 %p6, %r1, 32;\n@%p6 st.shared.b32")
    change = REPLACE.replace(ONE, "setp.ne.u32 %p1, %r1, 32;\n") + PUBLISH + ACQUIRE
    tensors = Tensors()
    got = tensors.run(begin + second.format(change) + "bar.sync 0;\n" + USE, threads=64)
    np.testing.assert_array_equal(got, tensors.expected())
    # What orders the change and the copy in time orders nothing else: a flag in global memory that is no atomic.
    spin = "spin:\nld.volatile.global.u32 %r8, [%rd1];\nsetp.eq.u32 %p6, %r8, 0;\n@%p6 bra spin;\n"
    unordered = second.format(change + "st.global.u32 [%rd1], 1;\n") + spin
    check, _ = caught(begin + unordered + USE, threads=64)
    assert check == "proxy"


def test_what_the_driver_would_refuse_is_refused_at_use():
    for field, bits, value, words in [
        ("global_stride", 64, "0, 72", "stride 1 must be a multiple of 16"),
        ("global_address", 64, "8", "must start at a multiple of 16"),
        ("swizzle_mode", 32, "1", "wider than the swizzle"),
    ]:
        begin = COPY.replace("[16, 16]", "[32, 16]") if field == "swizzle_mode" else COPY
        change = IN_SHARED.format(field, bits, value)
        if field == "swizzle_mode":
            change += IN_SHARED.format("box_dim", 32, "0, 64")
        change = ONE + "@%p1 bra replaced;\n" + change + "replaced:\nbar.warp.sync 0xffffffff;\n"
        check, sentence = caught(begin + change + PUBLISH + ACQUIRE + USE)
        assert check == "tensor map" and words in sentence, sentence


@pytest.mark.parametrize(
    ("field", "bits", "value", "words"),
    [
        ("global_dim", 32, "0, 0", "a dimension of 0"),
        ("box_dim", 32, "0, 257", "a box of 257"),
        ("rank", 32, "5", "a rank (less one) of 5"),
        ("element_stride", 32, "1, 9", "an element stride of 9"),
    ],
)
def test_values_that_a_map_cannot_hold(field, bits, value, words):
    check, sentence = caught(COPY + ONE + "@%p1 bra over;\n" + IN_SHARED.format(field, bits, value) + "over:\n")
    assert check == "tensor map" and words in sentence


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (IN_SHARED.format("global_dim", 32, "5, 1"), "ordinal of global_dim is 0 to 4"),
        (IN_SHARED.format("global_stride", 64, "4, 16"), "ordinal of global_stride is 0 to 3"),
        (IN_SHARED.format("global_stride", 32, "0, 16"), "takes .b64"),
        (IN_SHARED.format("elemtype", 32, "13"), "known are 0 to 12"),
        (IN_SHARED.format("interleave_layout", 32, "1"), "known are 0 to 0"),
        (IN_SHARED.format("swizzle_mode", 32, "%r1"), "must be an integer constant"),
        (IN_SHARED.format("box_size", 32, "0, 1"), "modifier .box_size is not supported"),
        (PUBLISH.replace("128", "64"), "size of a tensor map is 128"),
        (ACQUIRE.replace("128", "64"), "size of a tensor map is 128"),
        (ACQUIRE.replace("acquire", "acq_rel"), "modifier .acq_rel is not supported"),
    ],
)
def test_forms_that_do_not_exist(instruction, words):
    check, sentence = caught(COPY + instruction)
    assert check == "instruction" and words in sentence, sentence


def test_other_misuse():
    check, sentence = caught(COPY.replace("4096", "4112") + REPLACE)
    assert check == "alignment", sentence
    check, sentence = caught(COPY.replace("st.shared.b32 [%r6], %r7", "st.shared.b32 [%r6], %r1") + REPLACE)
    assert check == "tensor map" and "nor 128 bytes of zeros" in sentence
    check, sentence = caught(COPY + ONE + "@!%p1 " + PUBLISH)
    assert check == "divergence", sentence
    check, sentence = caught(COPY + "mad.lo.u32 %r4, %r1, 64, %r4;\n" + PUBLISH)
    assert check == "tensor map" and "different tensor maps" in sentence
    check, sentence = caught(COPY + REPLACE + PUBLISH, slot=array_on_device(np.zeros(64, np.uint8)))
    assert check == "bounds", sentence
    # another warp writes the map's bytes while it is copied
    racing = COPY.replace("bar.warp.sync 0xffffffff", "").replace("shl.b32 %r5, %r1, 2", "and.b32 %r5, %r1, 31;\n"
                                                                 "shl.b32 %r5, %r5, 2")  # fmt: skip
    check, sentence = caught(racing + REPLACE + PUBLISH, threads=64)
    assert check == "race", sentence


def test_a_map_may_not_change_under_a_store():
    store = (
        ONE + "@%p1 bra stored;\nst.shared.b32 [%r2], 0;\nfence.proxy.async.shared::cta;\nmov.s32 %r30, 0;\n"
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd5, {{%r30, %r30}}], [%r2];\n"
        "cp.async.bulk.commit_group;\n{}stored:\nbar.warp.sync 0xffffffff;\n"
    )
    fill = "mov.u32 %r40, %r1;\nfill:\nshl.b32 %r41, %r40, 2;\nadd.u32 %r41, %r41, %r2;\nst.shared.b32 [%r41], 0;\n"
    fill += "add.u32 %r40, %r40, 32;\nsetp.lt.u32 %p8, %r40, 128;\n@%p8 bra fill;\nbar.warp.sync 0xffffffff;\n"
    fill += "fence.proxy.async.shared::cta;\n"
    begin = COPY + REPLACE + PUBLISH + ACQUIRE + fill
    tensors = Tensors()
    tensors.run(begin + store.format("cp.async.bulk.wait_group.read 0;\n") + PUBLISH)
    assert not tensors.other.tensor.numpy().view(np.uint16).reshape(5, 32)[:, :16].any()
    check, sentence = caught(begin + store.format("") + PUBLISH)
    assert check == "tensor map" and "under way" in sentence


# The lanes of a warp: lane 7 changes the map that the warp copies.
CHANGE_BY_7 = (
    "setp.ne.u32 %p7, %r1, 7;\n@%p7 bra changed{0};\n"
    + IN_SHARED.format("global_address", 64, "%rd6")
    + "changed{0}:\n"
)


def test_a_copy_has_read_the_map_before_any_lane_goes_on():
    """The next change needs no __syncwarp() after the copy, by whichever lane; the copy after it does."""
    meet = "bar.warp.sync 0xffffffff;\n"
    tensors = Tensors()
    body = COPY + REPLACE + PUBLISH + CHANGE_BY_7.format(0) + meet + PUBLISH + ACQUIRE + USE
    np.testing.assert_array_equal(tensors.run(body), tensors.expected())
    check, sentence = caught(COPY + REPLACE + PUBLISH + CHANGE_BY_7.format(0) + PUBLISH)
    assert check == "race" and "which lane 7 of warp 0 wrote" in sentence and "__syncwarp" in sentence


def test_an_ordinary_read_is_not_over_for_other_lanes_by_the_copy():
    read = "ld.shared.u32 %r9, [%r4];\n"
    check, sentence = caught(COPY + REPLACE + read + PUBLISH + CHANGE_BY_7.format(0))
    assert check == "race" and "reads" in sentence and "__syncwarp" in sentence
    check, sentence = caught(COPY + REPLACE + PUBLISH + read + CHANGE_BY_7.format(0))
    assert check == "race" and "reads" in sentence


def test_another_warp_that_changes_a_copied_map_must_be_ordered():
    begin = COPY.replace("bar.warp.sync 0xffffffff", "bar.sync 0")
    begin = begin.replace("shl.b32 %r5, %r1, 2", "and.b32 %r5, %r1, 31;\nshl.b32 %r5, %r5, 2")
    begin = begin.replace("st.shared.b32", "setp.lt.u32 %p6, %r1, 32;\n@%p6 st.shared.b32")
    first = "setp.ge.u32 %p7, %r1, 32;\n@%p7 bra copied;\n{}copied:\n"
    change = CHANGE_BY_7.replace("%r1, 7", "%r1, 40").format(1)
    Tensors().run(begin + first.format(PUBLISH) + "bar.sync 0;\n" + change, threads=64)
    check, sentence = caught(begin + first.format(PUBLISH) + change, threads=64)
    assert check == "race" and ("reads" in sentence or "copies" in sentence)
    # One lane of the copying warp tells the other warp: that is enough.
    flag = "setp.eq.u32 %p6, %r1, 3;\n@%p6 atom.shared.add.u32 %r9, [%r2+2048], 1;\n"
    spin = ("setp.lt.u32 %p7, %r1, 32;\n@%p7 bra told;\nspin:\natom.shared.add.u32 %r9, [%r2+2048], 0;\n"
            "setp.eq.u32 %p6, %r9, 0;\n@%p6 bra spin;\ntold:\n")  # fmt: skip
    clear = "setp.eq.u32 %p6, %r1, 0;\n@%p6 st.shared.u32 [%r2+2048], 0;\nbar.sync 0;\n"
    Tensors().run(begin + clear + first.format(PUBLISH + flag) + spin + change, threads=64)
