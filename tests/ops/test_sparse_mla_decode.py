import pytest
import torch

from glm5_ops import mla_cache_gather, reference, sparse_mla_attention, sparse_mla_decode
from glm5_ops.workloads._compare import cosine_difference, in_f64
from glm5_ops.workloads.sparse_mla_attention import EDGES_DECODE, SparseMlaDecodeCase
from tests import harness
from tests.harness import GPUS, TARGETS, VECTOR_CPUS, over

CPUS = tuple(t for t in TARGETS if t not in GPUS)
OP = "sparse_mla_decode"
EXACT, FAST = (
    [
        SparseMlaDecodeCase(2, 130, 70, 12, 2, cache, "any", more, schedule)
        for cache in ("fp8", "bf16")
        for more in ("t", "ls")
    ]
    for schedule in ("exact", "fast")
)
KINDS = EXACT + FAST


@over(EDGES_DECODE)
def test_matches_the_reference(case, target):
    harness.check_matches_reference(OP, case, target)


@over(EDGES_DECODE, VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic(OP, case, target)


@over(KINDS)
def test_same_bits_twice_and_in_any_batch(case, target):
    harness.check_repeats(OP, case, target)
    harness.check_rows_do_not_depend_on_the_batch(OP, case, target)


@over(KINDS, CPUS)
def test_same_bits_with_any_thread_count(case, target):
    harness.check_thread_count_does_not_matter(OP, case, target)


@over(EXACT)
def test_a_decoded_token_has_the_bits_of_its_prefill_row(case, target):
    inputs = case.inputs(target.device)
    out, lse = sparse_mla_decode(**inputs)
    cache, table, sequences = inputs.pop("cache"), inputs.pop("block_table", None), inputs.pop("sequences", None)
    for t in range(case.tokens):
        if table is None:
            slots = torch.arange(len(cache) * 64, device=target.device)
        else:
            pages = table[int(sequences[t])].long()
            slots = (pages[:, None] * 64 + torch.arange(64, device=target.device)).flatten()
        keys = mla_cache_gather(cache, slots)
        given = {n: v[t : t + 1] for n, v in inputs.items() if n in ("q", "indices", "topk_length")}
        prefill, prefill_lse, _ = sparse_mla_attention(kv=keys, **(inputs | given))
        harness.check_same_bits(OP, [out[t : t + 1], lse[t : t + 1]], [prefill, prefill_lse])


@over(KINDS[::2])
def test_where_pages_lie_does_not_matter(case, target):
    inputs = case.inputs(target.device)
    cache, table = inputs["cache"], inputs["block_table"]
    order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(4)).to(target.device)
    moved = torch.empty_like(cache)
    moved[order] = cache
    elsewhere = inputs | {"cache": moved, "block_table": order[table.long()].int()}
    harness.check_same_bits(OP, sparse_mla_decode(**elsewhere), sparse_mla_decode(**inputs))


@over(KINDS)
def test_what_no_index_names_is_not_read(case, target):
    inputs = case.inputs(target.device)
    before = sparse_mla_decode(**inputs)
    cache = inputs["cache"]
    slots = torch.arange(len(cache) * 64, device=target.device)
    named = torch.zeros_like(slots, dtype=torch.bool)
    for t in range(case.tokens):
        row = inputs["indices"][t].long()
        if "block_table" in inputs:
            row = row[(row >= 0) & (row < inputs["block_table"].shape[1] * 64)]
            row = inputs["block_table"][int(inputs["sequences"][t]), row // 64].long() * 64 + row % 64
        named[row[(row >= 0) & (row < len(slots))]] = True
    assert named.any() and not named.all()
    poison = torch.full_like(cache, 0xFF if cache.dtype == torch.uint8 else float("nan"))  # of bytes: all values NaN
    poisoned = torch.where(named.view(-1, 64, 1), cache, poison)
    harness.check_same_bits(OP, sparse_mla_decode(**(inputs | {"cache": poisoned})), before)
    if "block_table" in inputs:
        wider = torch.cat((inputs["block_table"], torch.full_like(inputs["block_table"][:, :1], -7)), dim=1)
        inside = inputs["indices"] < inputs["block_table"].shape[1] * 64
        indices = torch.where(inside, inputs["indices"], -1)
        harness.check_same_bits(OP, sparse_mla_decode(**(inputs | {"block_table": wider, "indices": indices})), before)


@over(FAST)
def test_fast_is_close_to_attention_over_unrounded_values(case, target):
    inputs = case.inputs(target.device)
    out, lse = sparse_mla_decode(**inputs)
    exact, exact_lse = reference.sparse_mla_decode(**(in_f64(inputs)))
    for t in range(case.tokens):
        assert cosine_difference(out[t], exact[t]) < 5e-6
    named = exact_lse > -float("inf")
    assert bool(((lse - exact_lse)[named].abs() <= 1e-6 + 2.01 / 65536 * exact_lse[named].abs()).all())


@over([SparseMlaDecodeCase(1, 1, 1, 1)])
@pytest.mark.parametrize("cache", ["fp8", "bf16"])
def test_tiles_in_turn_give_the_bits_of_tiles_dealt_out(case, target, cache):
    # 17 tokens have theirs in turn, on a GPU and on a CPU with at most 8 threads; one token's are dealt out.
    many = SparseMlaDecodeCase(17, 70, 70, 2, cache=cache, fill="any", more="tls", schedule="fast")
    inputs = many.inputs(target.device)
    inputs["topk_length"][:] = torch.tensor([70, 64, 65, 0] * 4 + [70])
    inputs["indices"][0, :64] = -1  # an empty tile before one that is not
    out, lse = sparse_mla_decode(**inputs)
    for t in (0, 1, 2, 3, 16):
        one = inputs | {n: inputs[n][t : t + 1] for n in ("q", "indices", "topk_length", "sequences")}
        harness.check_same_bits(OP, sparse_mla_decode(**one), [out[t : t + 1], lse[t : t + 1]])
    assert not out[3].any() and bool((lse[3] == -float("inf")).all())


@over([SparseMlaDecodeCase(1, 1, 1, 1)])
def test_a_shard_of_heads_has_the_bits_of_all_heads(case, target):
    inputs = SparseMlaDecodeCase(1, 90, 66, 64, fill="any", more="ts", schedule="fast").inputs(target.device)
    out, lse = sparse_mla_decode(**inputs)
    for first, last in ((0, 8), (24, 48), (5, 6), (61, 64)):
        part = inputs | {"q": inputs["q"][:, first:last], "sink": inputs["sink"][first:last]}
        harness.check_same_bits("shard", sparse_mla_decode(**part), [out[:, first:last], lse[:, first:last]])


@over([SparseMlaDecodeCase(1, 1, 1, 1)])
def test_nan_in_a_key_spreads_to_the_tokens_that_name_it_alone(case, target):
    inputs = SparseMlaDecodeCase(2, 70, 70, 3, fill="full", more="t", schedule="fast").inputs(target.device)
    page = int(inputs["block_table"][1, 0])
    inputs["cache"][page, 5, 3] = 0x7F  # a NaN of e4m3, at position 5 of the second sequence
    inputs["indices"][0, 10] = -1
    out, lse = sparse_mla_decode(**inputs)
    assert bool(out[1].isnan().all()) and bool(lse[1].isnan().all())
    assert not out[0].isnan().any() and not lse[0].isnan().any()


def _right(**change) -> dict:
    return SparseMlaDecodeCase(2, 70, 8, 3, fill="full").inputs() | change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"q": torch.zeros(2, 3, 512).bfloat16()}, "q must be bf16[tokens, heads, 576]"),
        ({"cache": torch.zeros(6, 64, 576, dtype=torch.uint8)}, "byte_cache must be u8[pages, 64, 656]"),
        ({"cache": torch.zeros(6, 64, 656).bfloat16()}, "bf16_cache must be bf16[pages, 64, 576]"),
        ({"indices": torch.zeros(2, 8).long()}, "indices must be i32[tokens, topk]"),
        ({"block_table": torch.zeros(2, 2).long()}, "block_table must be i32[sequences, max_pages]"),
        ({"sequences": torch.zeros(3).int()}, "sequences must be i32[tokens]"),
        ({"sequences": None}, "sequences must be given with block_table, and only then; got None"),
        ({"schedule": "quick"}, "schedule must be one of exact, fast; got 'quick'"),
        ({"scale": float("nan")}, "scale must be a finite number; got nan"),
        ({"q": torch.zeros(2, 3, 576).bfloat16().requires_grad_()}, "q requires grad, but sparse_mla_decode has no"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(sparse_mla_decode, **_right(**change))
    assert message.startswith(f"{OP}: ") and sentence in message


OUTSIDE = [
    ({"sequences": [0, 2]}, "sequences[1] must be a row of block_table, which has 2; got 2"),
    ({"sequences": [-1, 0]}, "sequences[0] must be a row of block_table, which has 2; got -1"),
    (
        {"block_table": [[0, 6], [1, 2]], "indices": [[1, 64], [1, 2]]},
        "block_table[0, 1] must be a page of the cache, since indices[0, 1] uses it; got 6",
    ),
    (
        {"block_table": [[0, 1], [-1, 2]], "indices": [[1, 2], [-5, 7]]},
        "block_table[1, 0] must be a page of the cache, since indices[1, 1] uses it; got -1",
    ),
]


def _outside(change: dict, device: str) -> dict:
    right = SparseMlaDecodeCase(2, 70, 2, 3, fill="full").inputs(device)
    return right | {n: torch.tensor(v, dtype=torch.int32, device=device) for n, v in change.items()}


@pytest.mark.parametrize(("change", "sentence"), OUTSIDE)
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("schedule", ["exact", "fast"])
def test_pages_outside_are_refused_on_the_cpu(change, sentence, check, schedule):
    inputs = _outside(change, "cpu") | {"schedule": schedule}
    assert f"{OP}: {sentence}" in harness.message_of(sparse_mla_decode, **inputs, check_indices=check)


@pytest.mark.parametrize(("change", "sentence"), OUTSIDE)
@pytest.mark.parametrize("schedule", ["exact", "fast"])
@over([SparseMlaDecodeCase(1, 1, 1, 1)], GPUS)
def test_pages_outside_are_absent_on_a_gpu_and_refused_on_demand(case, target, change, sentence, schedule):
    inputs = _outside(change, target.device) | {"schedule": schedule}
    out, lse = sparse_mla_decode(**inputs)  # the emulator would report an access beyond the tensors
    assert not out.isnan().any() and not lse.isnan().any()
    assert f"{OP}: {sentence}" in harness.message_of(sparse_mla_decode, **inputs, check_indices=True)


def test_registration():
    order = ("q", "cache", "indices", "scale", "block_table", "sequences", "topk_length", "sink", "schedule")
    for cache, more in (("fp8", "tls"), ("bf16", "")):
        given = {"schedule": "exact"} | SparseMlaDecodeCase(2, 9, 4, 4, cache=cache, more=more).inputs()
        inputs = dict.fromkeys(order) | given
        harness.check_registration(OP, *(inputs[n] for n in order))


def test_compiles_without_a_break():
    inputs = SparseMlaDecodeCase(2, 70, 8, 3).inputs()
    compiled = torch.compile(sparse_mla_decode, fullgraph=True, dynamic=True, backend="aot_eager")
    harness.check_same_bits(OP, compiled(**inputs), sparse_mla_decode(**inputs))
