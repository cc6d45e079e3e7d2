import pytest
import torch

from glm5_ops import dequantize_fp8, mla_cache_append, mla_cache_gather, quantize_fp8, reference
from glm5_ops.workloads.mla_cache_append import EDGES, AppendCase
from tests import harness
from tests.harness import over

OP = "mla_cache_append"


@over(EDGES)
def test_matches_the_reference_to_the_bit(case, target):
    harness.check_matches_reference(OP, case, target)


@over([AppendCase(300, 6, skip=7), AppendCase(300, 6, "bf16")])
def test_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats(OP, case, target)
    harness.check_thread_count_does_not_matter(OP, case, target)


@over([AppendCase(50, 2)])
def test_a_token_does_not_depend_on_the_others(case, target):
    inputs = case.inputs(target.device)
    together = inputs["cache"].clone()
    mla_cache_append(**(inputs | {"cache": together}))
    alone = inputs["cache"].clone()
    for t in range(case.tokens):
        one = {name: inputs[name][t : t + 1] for name in ("kv", "positions", "cache_slots")}
        mla_cache_append(**(inputs | one | {"cache": alone}))
    harness.check_same_bits(OP, [alone], [together])


@over([AppendCase(130, 3, power_of_two=p) for p in (False, True)])
def test_the_byte_cache_holds_what_quantize_fp8_makes_of_the_bf16_cache(case, target):
    inputs = case.inputs(target.device)
    keys = torch.zeros(case.pages, 64, 576, dtype=torch.bfloat16, device=target.device)
    mla_cache_append(**(inputs | {"cache": keys}))
    cache = torch.zeros(case.pages, 64, 656, dtype=torch.uint8, device=target.device)
    mla_cache_append(**(inputs | {"cache": cache}))
    slots = inputs["cache_slots"]
    stored, kept = cache.view(-1, 656)[slots], keys.view(-1, 576)[slots]
    values, scales = quantize_fp8(kept[:, :512].contiguous(), "1x128", case.power_of_two)
    assert torch.equal(stored[:, :512], values.view(torch.uint8))
    assert torch.equal(stored[:, 512:528].contiguous().view(torch.float32), scales)
    assert torch.equal(stored[:, 528:].contiguous().view(torch.bfloat16), kept[:, 512:])


@over([AppendCase(40, 2, cache, skip=3) for cache in ("fp8", "bf16")])
def test_nothing_is_written_but_the_slots_of_the_call(case, target):
    inputs = case.inputs(target.device)
    written = inputs["cache_slots"][inputs["cache_slots"] >= 0]
    assert 0 < len(written) < case.tokens
    after = inputs["cache"].clone()
    mla_cache_append(**(inputs | {"cache": after}))
    untouched = torch.ones(case.pages * 64, dtype=torch.bool)
    untouched[written] = False
    rows = [c.flatten(0, 1)[untouched] for c in (after, inputs["cache"])]
    harness.check_same_bits("rows of other slots", rows[:1], rows[1:])
    assert not torch.equal(after.flatten(0, 1)[written], inputs["cache"].flatten(0, 1)[written])


@over([AppendCase(64, 1, "bf16", "f32", weight="f32")])
def test_is_rms_norm_of_the_latent_and_interleaved_rope_of_the_rest(case, target):
    inputs = case.inputs(target.device)
    cache = inputs["cache"].clone()
    mla_cache_append(**(inputs | {"cache": cache}))
    x = inputs["kv"].double()
    latent = torch.nn.functional.rms_norm(x[:, :512], (512,), inputs["norm_weight"].double(), 1e-5)
    angles = torch.view_as_complex(inputs["cos_sin"].double())[inputs["positions"].long()]
    pairs = torch.view_as_complex(x[:, 512:].reshape(-1, 32, 2).contiguous()) * angles
    expected = torch.cat((latent, torch.view_as_real(pairs).flatten(1)), dim=1)
    got = cache.view(-1, 576)[inputs["cache_slots"]].double()
    # one rounding to bf16, of values that f32 has to about 1e-6
    assert float(((got - expected).abs() / (expected.abs() + 1e-3)).max()) < 2**-8


def test_rounds_before_the_weight_as_transformers_does():
    inputs = AppendCase(500, 8, "bf16").inputs()
    mla_cache_append(**inputs)
    x = inputs["kv"][:, :512].float()
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    expected = inputs["norm_weight"] * normed.bfloat16()
    got = inputs["cache"].view(-1, 576)[inputs["cache_slots"], :512]
    # the reciprocal root may differ in its last bit, which rarely shows after rounding to bf16
    assert float((got != expected).float().mean()) < 1e-3


def test_reference_computes_in_f64_when_given_f64():
    inputs = AppendCase(9, 1, "bf16", "f32", weight="f32").inputs()
    wide = {n: v.double() if n in ("kv", "norm_weight", "cos_sin") else v for n, v in inputs.items()}
    caches = [inputs["cache"].clone() for _ in range(2)]
    reference.mla_cache_append(**(inputs | {"cache": caches[0]}))
    reference.mla_cache_append(**(wide | {"cache": caches[1]}))
    assert float((caches[0].double() - caches[1].double()).abs().max()) <= 2**-6


@over([AppendCase(70, 2, power_of_two=True)])
def test_what_was_gathered_and_quantised_again_is_the_same(case, target):
    """Prefix reuse loses nothing with scales that are powers of two."""
    inputs = case.inputs(target.device)
    mla_cache_append(**inputs)
    latent = mla_cache_gather(inputs["cache"], inputs["cache_slots"])[:, :512].contiguous()
    values, scales = quantize_fp8(latent, "1x128", True)
    harness.check_same_bits(OP, [dequantize_fp8(values, scales, "1x128", torch.bfloat16)], [latent])


def _right(**change) -> dict:
    return AppendCase(4, 1).inputs() | change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kv": torch.zeros(4, 512)}, "kv must be bf16|f32[tokens, 576], with unit stride along the last dimension"),
        ({"kv": torch.zeros(4, 576, dtype=torch.float16)}, "kv must be bf16|f32[tokens, 576]"),
        ({"norm_weight": torch.zeros(576)}, "norm_weight must be bf16|f32[512]"),
        (
            {"positions": torch.zeros(4, dtype=torch.int64)},
            "positions must be i32[tokens], row-major, where tokens is 4",
        ),
        ({"cache_slots": torch.zeros(5, dtype=torch.int64)}, "cache_slots must be i64[tokens]"),
        ({"cos_sin": torch.zeros(9, 64)}, "cos_sin must be f32[max_positions, 32, 2]"),
        ({"cache": torch.zeros(1, 64 * 656, dtype=torch.uint8)}, "byte_cache must be u8[pages, 64, 656]"),
        ({"cache": torch.zeros(1, 64, 512).bfloat16()}, "bf16_cache must be bf16[pages, 64, 576]"),
        ({"cache": torch.zeros(1, 64, 576)}, "bf16_cache must be bf16[pages, 64, 576]"),
        ({"eps": 0.0}, "eps must be above 0; got 0.0"),
        ({"kv": torch.zeros(4, 576, requires_grad=True)}, "kv requires grad, but mla_cache_append has no gradient"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(mla_cache_append, **_right(**change))
    assert message.startswith(f"{OP}: ") and sentence in message


OUTSIDE = [
    ({"cache_slots": [0, 64, 2, 3]}, "cache_slots must be -1 or a slot of the cache, 0 .. 63; cache_slots[1] is 64"),
    ({"cache_slots": [0, 1, 2, -2]}, "cache_slots must be -1 or a slot of the cache, 0 .. 63; cache_slots[3] is -2"),
    ({"positions": [0, 4096, 1, 2]}, "positions must be rows of cos_sin, 0 .. 4095; positions[1] is 4096"),
    ({"positions": [-1, 0, 1, 2]}, "positions must be rows of cos_sin, 0 .. 4095; positions[0] is -1"),
]


def _outside(change: dict, device: str) -> dict:
    kinds = {"cache_slots": torch.int64, "positions": torch.int32}
    right = AppendCase(4, 1).inputs(device)
    return right | {name: torch.tensor(value, dtype=kinds[name], device=device) for name, value in change.items()}


@pytest.mark.parametrize(("change", "sentence"), OUTSIDE)
def test_indices_outside_are_refused_on_the_cpu_and_nothing_is_written(change, sentence):
    inputs = _outside(change, "cpu")
    before = inputs["cache"].clone()
    assert f"{OP}: {sentence}" in harness.message_of(mla_cache_append, **inputs)
    assert torch.equal(inputs["cache"], before)


@pytest.mark.parametrize(("change", "sentence"), OUTSIDE)
@over([AppendCase(4, 1)], harness.GPUS)
def test_indices_outside_reach_no_memory_on_a_gpu_and_are_refused_on_demand(case, target, change, sentence):
    inputs = _outside(change, target.device)
    mla_cache_append(**inputs)  # the emulator would report an access beyond the tensors
    before = inputs["cache"].clone()
    assert f"{OP}: {sentence}" in harness.message_of(mla_cache_append, **inputs, check_indices=True)
    assert torch.equal(inputs["cache"], before)


@over([AppendCase(4, 1)], harness.GPUS)
def test_rows_that_cannot_be_read_in_pairs_are_refused_on_a_gpu(case, target):
    inputs = case.inputs(target.device)
    odd = torch.zeros(4, 577, dtype=torch.bfloat16, device=target.device)[:, 1:]
    message = harness.message_of(mla_cache_append, **(inputs | {"kv": odd}))
    assert f"{OP}: kv must start at a multiple of 4 bytes, and its rows too, on CUDA" in message


def test_registration():
    inputs = AppendCase(5, 1, "bf16").inputs()
    harness.check_registration(OP, *inputs.values())


def test_compiles_without_a_break():
    def store(**inputs):
        mla_cache_append(**inputs)
        return inputs["cache"] + 0

    inputs = AppendCase(9, 1, "bf16").inputs()
    expected = store(**(inputs | {"cache": inputs["cache"].clone()}))
    compiled = torch.compile(store, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(**(inputs | {"cache": inputs["cache"].clone()})), expected)
