import pytest
import torch

from glm5_ops import mla_cache_gather
from glm5_ops.workloads.mla_cache_gather import EDGES, GatherCase
from tests import harness
from tests.harness import over

OP = "mla_cache_gather"


@over(EDGES)
def test_matches_the_reference_to_the_bit(case, target):
    harness.check_matches_reference(OP, case, target)


@over([GatherCase(700, 3, skip=5), GatherCase(700, 3, "bf16")])
def test_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats(OP, case, target)
    harness.check_thread_count_does_not_matter(OP, case, target)


@over([GatherCase(1, 1)])
def test_every_code_of_e4m3_times_its_scale(case, target):
    cache = torch.zeros(1, 64, 656, dtype=torch.uint8)
    cache[0, 5, :512] = torch.arange(512) % 256
    scales = torch.tensor([1.0, 3.0, 2.0**-120, 448.0 / 3])
    cache[0, 5, 512:528] = scales.view(torch.uint8)
    cache[0, 5, 528:] = torch.arange(64).bfloat16().view(torch.uint8)
    slots = torch.tensor([5], device=target.device)
    got = mla_cache_gather(cache.to(target.device), slots).cpu()[0]
    codes = (torch.arange(512) % 256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    expected = (codes * scales.repeat_interleave(128)).bfloat16()
    harness.check_same_bits(OP, [got[:512]], [expected])
    assert torch.equal(got[512:], torch.arange(64).bfloat16())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cache": torch.zeros(1, 64, 576, dtype=torch.uint8)}, "byte_cache must be u8[pages, 64, 656]"),
        ({"cache": torch.zeros(1, 64, 656).bfloat16()}, "bf16_cache must be bf16[pages, 64, 576]"),
        ({"cache_slots": torch.zeros(5, dtype=torch.int32)}, "cache_slots must be i64[rows]"),
        (
            {"cache": torch.zeros(1, 64, 576, dtype=torch.bfloat16, requires_grad=True)},
            "bf16_cache requires grad, but mla_cache_gather has no gradient",
        ),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(mla_cache_gather, **(GatherCase(4, 1).inputs() | change))
    assert message.startswith(f"{OP}: ") and sentence in message


OUTSIDE = [
    ([0, 64], "cache_slots must be -1 or a slot of the cache, 0 .. 63; cache_slots[1] is 64"),
    ([-2, 0], "cache_slots must be -1 or a slot of the cache, 0 .. 63; cache_slots[0] is -2"),
]


@pytest.mark.parametrize(("slots", "sentence"), OUTSIDE)
def test_slots_outside_are_refused_on_the_cpu(slots, sentence):
    cache = GatherCase(1, 1).inputs()["cache"]
    assert f"{OP}: {sentence}" in harness.message_of(mla_cache_gather, cache, torch.tensor(slots))


@pytest.mark.parametrize(("slots", "sentence"), OUTSIDE)
@over([GatherCase(1, 1), GatherCase(1, 1, "bf16")], harness.GPUS)
def test_slots_outside_give_zeros_on_a_gpu_and_are_refused_on_demand(case, target, slots, sentence):
    cache = case.inputs(target.device)["cache"]
    slots = torch.tensor(slots, device=target.device)
    got = mla_cache_gather(cache, slots)  # the emulator would report an access beyond the tensors
    inside = (slots >= 0) & (slots < 64)
    assert not got[~inside].any() and got[inside].any()
    assert f"{OP}: {sentence}" in harness.message_of(mla_cache_gather, cache, slots, check_indices=True)


def test_registration():
    harness.check_registration(OP, *GatherCase(5, 1, "bf16").inputs().values())


def test_compiles_without_a_break():
    inputs = GatherCase(9, 1).inputs()
    compiled = torch.compile(mla_cache_gather, fullgraph=True, dynamic=True, backend="aot_eager")
    harness.check_same_bits(OP, [compiled(**inputs)], [mla_cache_gather(**inputs)])
