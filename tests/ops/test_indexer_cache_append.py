import pytest
import torch

from glm5_ops import indexer_cache_append, quantize_fp8, reference
from glm5_ops.workloads.indexer_cache_append import EDGES, AppendCase, rope_table
from tests import harness
from tests.harness import over

OP = "indexer_cache_append"


@over(EDGES)
def test_matches_the_reference_to_the_bit(case, target):
    harness.check_matches_reference(OP, case, target)


@over([AppendCase(300, 6, hadamard=True, skip=7), AppendCase(300, 6, "bf16")])
def test_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats(OP, case, target)
    harness.check_thread_count_does_not_matter(OP, case, target)


@over([AppendCase(50, 2, hadamard=True)])
def test_a_token_does_not_depend_on_the_others(case, target):
    inputs = case.inputs(target.device)
    together = inputs["cache"].clone()
    indexer_cache_append(**(inputs | {"cache": together}))
    alone = inputs["cache"].clone()
    for t in range(case.tokens):
        one = {name: inputs[name][t : t + 1] for name in ("k", "positions", "cache_slots")}
        indexer_cache_append(**(inputs | one | {"cache": alone}))
    harness.check_same_bits(OP, [alone], [together])


@over([AppendCase(130, 3, power_of_two=p, hadamard=h) for p in (False, True) for h in (False, True)])
def test_the_byte_cache_holds_what_quantize_fp8_makes_of_the_bf16_cache(case, target):
    inputs = case.inputs(target.device)
    keys = torch.zeros(case.pages, 64, 128, dtype=torch.bfloat16, device=target.device)
    indexer_cache_append(**(inputs | {"cache": keys}))
    cache = torch.zeros(case.pages, 64 * 132, dtype=torch.uint8, device=target.device)
    indexer_cache_append(**(inputs | {"cache": cache}))
    slots = inputs["cache_slots"]
    values, scales = quantize_fp8(keys.view(-1, 128)[slots], "1x128", case.power_of_two)
    assert torch.equal(cache[:, :8192].reshape(-1, 128)[slots], values.view(torch.uint8))
    assert torch.equal(cache[:, 8192:].contiguous().view(torch.float32).reshape(-1)[slots], scales[:, 0])


@over([AppendCase(40, 2, cache, skip=3) for cache in ("fp8", "bf16")])
def test_nothing_is_written_but_the_slots_of_the_call(case, target):
    inputs = case.inputs(target.device)
    written = inputs["cache_slots"][inputs["cache_slots"] >= 0]
    assert 0 < len(written) < case.tokens
    after = inputs["cache"].clone()
    indexer_cache_append(**(inputs | {"cache": after}))
    untouched = torch.ones(case.pages * 64, dtype=torch.bool)
    untouched[written] = False
    size = 128
    rows = [c.reshape(case.pages, -1)[:, : 64 * size].reshape(-1, size)[untouched] for c in (after, inputs["cache"])]
    harness.check_same_bits("rows of other slots", rows[:1], rows[1:])
    if case.cache == "fp8":
        scales = [c[:, 8192:].reshape(-1, 4)[untouched] for c in (after, inputs["cache"])]
        harness.check_same_bits("scales of other slots", scales[:1], scales[1:])


@over([AppendCase(64, 1, "bf16", "f32", hadamard=h) for h in (False, True)])
def test_is_layer_norm_then_interleaved_rope_then_hadamard(case, target):
    inputs = case.inputs(target.device)
    cache = inputs["cache"].clone()
    indexer_cache_append(**(inputs | {"cache": cache}))
    x = inputs["k"].double()
    weight, bias = inputs["norm_weight"].double(), inputs["norm_bias"].double()
    x = torch.nn.functional.layer_norm(x, (128,), weight, bias, 1e-6)
    angles = torch.view_as_complex(inputs["cos_sin"].double())[inputs["positions"].long()]
    pairs = torch.view_as_complex(x[:, :64].reshape(-1, 32, 2).contiguous()) * angles
    x = torch.cat((torch.view_as_real(pairs).flatten(1), x[:, 64:]), dim=1)
    if case.hadamard:
        h = torch.ones(1, 1, dtype=torch.float64)
        for _ in range(7):
            h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
        x = x @ h.to(x.device) / 128**0.5
    got = cache.view(-1, 128)[inputs["cache_slots"]].double()
    # one rounding to bf16, of values that f32 has to about 1e-6
    assert float(((got - x).abs() / (x.abs() + 1e-3)).max()) < 2**-8


def test_reference_computes_in_f64_when_given_f64():
    inputs = AppendCase(9, 1, "bf16", "f32").inputs()
    wide = {n: v.double() if n in ("k", "norm_weight", "norm_bias", "cos_sin") else v for n, v in inputs.items()}
    caches = [inputs["cache"].clone() for _ in range(2)]
    reference.indexer_cache_append(**(inputs | {"cache": caches[0]}))
    reference.indexer_cache_append(**(wide | {"cache": caches[1]}))
    assert float((caches[0].double() - caches[1].double()).abs().max()) <= 2**-6


def _right(**change) -> dict:
    return AppendCase(4, 1).inputs() | change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": torch.zeros(4, 64)}, "k must be bf16|f32[tokens, 128], with unit stride along the last dimension"),
        ({"k": torch.zeros(4, 128, dtype=torch.float16)}, "k must be bf16|f32[tokens, 128]"),
        ({"norm_bias": torch.zeros(128).bfloat16()}, "norm_bias must be torch.float32 as norm_weight"),
        (
            {"positions": torch.zeros(4, dtype=torch.int64)},
            "positions must be i32[tokens], row-major, where tokens is 4",
        ),
        ({"cache_slots": torch.zeros(5, dtype=torch.int64)}, "cache_slots must be i64[tokens]"),
        ({"cos_sin": torch.zeros(9, 64)}, "cos_sin must be f32[max_positions, 32, 2]"),
        ({"cache": torch.zeros(1, 64 * 128, dtype=torch.uint8)}, "byte_cache must be u8[pages, 8448]"),
        ({"cache": torch.zeros(1, 64, 64).bfloat16()}, "bf16_cache must be bf16[pages, 64, 128]"),
        ({"eps": 0.0}, "eps must be above 0; got 0.0"),
        ({"k": torch.zeros(4, 128, requires_grad=True)}, "k requires grad, but indexer_cache_append has no gradient"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(indexer_cache_append, **_right(**change))
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
    assert f"{OP}: {sentence}" in harness.message_of(indexer_cache_append, **inputs)
    assert torch.equal(inputs["cache"], before)


@pytest.mark.parametrize(("change", "sentence"), OUTSIDE)
@over([AppendCase(4, 1)], harness.GPUS)
def test_indices_outside_reach_no_memory_on_a_gpu_and_are_refused_on_demand(case, target, change, sentence):
    inputs = _outside(change, target.device)
    indexer_cache_append(**inputs)  # the emulator would report an access beyond the tensors
    before = inputs["cache"].clone()
    assert f"{OP}: {sentence}" in harness.message_of(indexer_cache_append, **inputs, check_indices=True)
    assert torch.equal(inputs["cache"], before)


def test_rope_table_starts_without_turning():
    assert torch.equal(rope_table(3, 1e6)[0], torch.tensor([1.0, 0.0]).expand(32, 2))


def test_registration():
    inputs = AppendCase(5, 1, "bf16").inputs()
    harness.check_registration(OP, *inputs.values())


def test_compiles_without_a_break():
    def store(**inputs):
        indexer_cache_append(**inputs)
        return inputs["cache"] + 0

    inputs = AppendCase(9, 1, "bf16").inputs()
    expected = store(**(inputs | {"cache": inputs["cache"].clone()}))
    compiled = torch.compile(store, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(**(inputs | {"cache": inputs["cache"].clone()})), expected)
