import itertools
import sys

import pytest
import torch

import glm5_ops
from glm5_ops import reference, topk_select
from glm5_ops.ops._op import stream_of
from glm5_ops.workloads.topk_select import EDGES, FILLS, TopkSelectCase, numbers
from tests import harness
from tests.emulator.harness_target import emulated
from tests.harness import over

topk_module = sys.modules["glm5_ops.ops.topk_select"]
NAN, INF = float("nan"), float("inf")
ONE = [TopkSelectCase(1, 1, 1)]
CPUS = [t for t in harness.TARGETS if t.name.startswith("cpu-")]
# More candidates than a buffer of the CPU kernels takes: 100 keys are cut from 1024 at a time.
LONG = [TopkSelectCase(7, 20000, 100, fill, optional=True) for fill in FILLS]


def chosen(scores: torch.Tensor, topk: int, **more) -> list[list[int]]:
    """Each row's indices without the -1 behind them."""
    return [[i for i in row if i >= 0] for row in topk_select(scores, topk, **more)[0].tolist()]


@over((*EDGES, *LONG))
def test_matches_the_reference_to_the_bit(case, target):
    harness.check_matches_reference("topk_select", case, target)


@over(EDGES, harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic("topk_select", case, target)


@over([*LONG[::4], TopkSelectCase(9, 700, 64, windows="ragged")])
def test_same_bits_twice(case, target):
    harness.check_repeats("topk_select", case, target)


# Seven threads share the two rows of 33,000 keys.
@over([*LONG, TopkSelectCase(2, 33000, 2048, "integers"), TopkSelectCase(9, 700, 64, windows="ragged")], CPUS)
def test_same_bits_with_any_thread_count(case, target):
    harness.check_thread_count_does_not_matter("topk_select", case, target)


@over([*(TopkSelectCase(8, 3000, 300, fill, offset=1) for fill in FILLS),
       TopkSelectCase(40, 700, 64, windows="ragged", paged=True)])  # fmt: skip
def test_a_row_alone_is_the_row_in_a_batch(case, target):
    harness.check_rows_do_not_depend_on_the_batch("topk_select", case, target)
    inputs = case.inputs(target.device)
    whole = topk_select(**inputs)
    shuffled = torch.randperm(case.rows, generator=torch.Generator().manual_seed(1)).to(target.device)
    rows = {n: inputs[n][shuffled] for n in ("scores", "windows", "sequences") if n in inputs}
    harness.check_same_bits("another order", topk_select(**inputs | rows), [w[shuffled] for w in whole])


@over([TopkSelectCase(3, 5000, 512)])
def test_the_cut_within_a_plateau_is_the_same_in_25_replays(case, target):
    """What a ReLU leaves: few scores above 0, and the last places go to the first of the zeros."""
    above = torch.randperm(5000, generator=torch.Generator().manual_seed(2))[:200]
    scores = torch.zeros(3, 5000)
    scores[:, above] = torch.rand(3, 200) + 0.1
    zeros = [i for i in range(5000) if i not in set(above.tolist())][: 512 - 200]
    expected = [sorted(above.tolist() + zeros)] * 3
    scores = scores.to(target.device)
    for _ in range(25 if target.device == "cuda" or (target.name.startswith("cpu") and not target.interpreted) else 2):
        assert chosen(scores, 512) == expected


@over(ONE)
@pytest.mark.parametrize("fill", [1.5, 0.0, -0.0, INF, -INF, NAN])
def test_of_equal_keys_the_first_are_taken(case, target, fill):
    scores = torch.full((2, 3000), fill, device=target.device)
    for topk in (1, 3, 512, 2047, 2048, 4096):
        indices, margins, fingerprints = topk_select(scores, topk, margins=True, fingerprints=True)
        expected = torch.arange(topk).where(torch.arange(topk) < 3000, -1).expand(2, -1)
        assert torch.equal(indices.cpu(), expected.int())
        assert margins.tolist() == [0.0 if topk < 3000 else INF] * 2
        assert fingerprints[0] == fingerprints[1]


@over(ONE)
def test_ranks_are_number_then_minus_infinity_then_nan(case, target):
    scores = torch.tensor([[NAN, -INF, -1.0, -0.0, 0.0, 2.0**-149, -(2.0**-149), INF, -NAN, 3e38]]).to(target.device)
    best_first = [7, 9, 5, 3, 4, 6, 2, 1, 0, 8]
    for topk in range(1, 11):
        assert chosen(scores, topk) == [sorted(best_first[:topk])]
    assert chosen(scores, 4096) == [list(range(10))]


@over(ONE)
def test_margins_are_worst_chosen_minus_best_left_out(case, target):
    rows = [
        ([5.0, 1.0, 3.5, 2.0], 1.5), ([5.0, 2.0, 3.0, 3.0], 0.0), ([INF, 1.0, 2.0, 3.0], 1.0),
        ([INF, INF, 2.0, 1.0], INF), ([0.0, -0.0, -0.0, -1.0], 0.0), ([1.0, 2.0, NAN, NAN], INF),
        ([1.0, NAN, NAN, NAN], 0.0), ([1.0, -INF, -INF, NAN], 0.0), ([1.0, 2.0, -INF, NAN], INF),
        ([1.0, -INF, NAN, NAN], INF), ([2.0**-149, 3 * 2.0**-149, 0.0, -1.0], 2.0**-149),
        ([3e38, 3e38, -3e38, -INF], INF),
    ]  # fmt: skip
    scores = torch.tensor([row for row, _ in rows]).to(target.device)
    assert topk_select(scores, 2, margins=True)[1].tolist() == [margin for _, margin in rows]
    windows = torch.tensor([[1, 3], [1, 2], [2, 2]], dtype=torch.int32, device=target.device)
    assert topk_select(scores[:3], 2, windows, margins=True)[1].tolist() == [INF] * 3


@over(ONE)
def test_what_lies_outside_a_window_does_not_matter(case, target):
    case = TopkSelectCase(9, 700, 64, windows="ragged")
    inputs = case.inputs()
    expected = reference.topk_select(**inputs)
    index = torch.arange(700)
    outside = (index < inputs["windows"][:, :1]) | (index >= inputs["windows"][:, 1:])
    for poison in (NAN, INF, -INF):
        poisoned = inputs | {"scores": torch.where(outside, poison, inputs["scores"])}
        moved = {n: v.to(target.device) if isinstance(v, torch.Tensor) else v for n, v in poisoned.items()}
        harness.check_same_bits(f"{poison} outside", topk_select(**moved), expected)


@over(ONE)
def test_windows_empty_full_and_of_one_key(case, target):
    scores = torch.arange(200.0).repeat(4, 1).to(target.device)
    windows = torch.tensor([[0, 0], [0, 200], [77, 78], [200, 200]], dtype=torch.int32, device=target.device)
    assert chosen(scores, 3, windows=windows) == [[], [197, 198, 199], [77], []]
    empty = topk_select(scores, 3, windows, margins=True, fingerprints=True)
    assert empty[1].tolist() == [INF, 1.0, INF, INF] and empty[2].tolist()[0] == empty[2].tolist()[3] == 0


@over([TopkSelectCase(r, k, t, f, w, offset=o)
       for r, k, t, f, w, o in ((1, 2500, 700, "normal", "all", 3), (3, 5001, 900, "special", "ragged", 1),
                                (2, 4099, 33, "plateau", "all", 2), (2, 2600, 40, "close", "all", 0),
                                (2, 4200, 1500, "equal", "all", 1), (2, 900, 1000, "integers", "ragged", 0),
                                (2, 4000, 400, "gap", "all", 0), (2, 3001, 512, "infinite", "all", 1))],
      harness.GPUS)  # fmt: skip
def test_every_schedule_of_the_gpu_gives_the_same_bits(case, target):
    """Keys kept in shared memory, candidates staged there, or the row read again; alone or by a cluster."""
    inputs = case.inputs(target.device)
    expected = reference.topk_select(**case.inputs())
    for cluster, staged in itertools.product((1, 2, 8), (0, 8 * 1024, 64 * 1024)):
        outputs = [torch.full_like(e, 99, device=target.device) for e in expected]
        scores, windows = inputs["scores"], inputs.get("windows")
        topk_module._native.topk_select_variant(scores, windows, *outputs, cluster, staged, stream_of(scores))
        harness.check_same_bits(f"cluster {cluster}, {staged} bytes", outputs, expected)


@over([TopkSelectCase(2, 9000, 600, fill, offset=1) for fill in ("integers", "plateau", "special")],
      [t for t in harness.TARGETS if t.emulated])  # fmt: skip
@pytest.mark.parametrize("schedule", ["late", "lowest", "highest", "random"])
def test_the_order_of_warps_does_not_matter(case, target, schedule):
    inputs = case.inputs()
    with emulated(seed=7, schedule=schedule):
        got = topk_select(**inputs)
    harness.check_same_bits(schedule, got, reference.topk_select(**inputs))


@over(ONE, CPUS)
def test_denormal_mode_of_the_caller_changes_nothing(case, target):
    inputs = TopkSelectCase(3, 3001, 512, "tiny").inputs(target.device)
    expected = reference.topk_select(**inputs)
    torch.set_flush_denormal(True)
    try:
        got = topk_select(**inputs)
    finally:
        torch.set_flush_denormal(False)
    harness.check_same_bits("topk_select with flushed denormals", got, expected)


@over(ONE, [t for t in harness.TARGETS if not t.interpreted and not t.emulated])
def test_random_rows_against_a_stable_sort(case, target):
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        rows, keys, topk = (int(torch.randint(1, high, (), generator=generator)) for high in (6, 6000, 3000))
        fill = FILLS[int(torch.randint(0, len(FILLS), (), generator=generator))]
        scores = numbers(fill, rows, keys, generator)
        ranked = torch.where(scores.isnan(), -INF, scores) + 0.0
        order = torch.sort(ranked, dim=1, descending=True, stable=True).indices
        nan_last = torch.sort(scores.isnan().int().gather(1, order), dim=1, stable=True).indices
        expected = order.gather(1, nan_last)[:, :topk].sort(dim=1).values
        got = topk_select(scores.to(target.device), topk)[0].cpu()
        assert torch.equal(got[:, : expected.shape[1]].long(), expected), (fill, rows, keys, topk)
        assert (got[:, expected.shape[1] :] == -1).all()


def test_fingerprints_are_equal_exactly_when_sets_are():
    """10^6 pairs of sets: half of them equal, the others differing in one key, by a swap, or by their length."""
    generator = torch.Generator().manual_seed(4)
    rows, keys, topk = 20000, 24, 8
    seen: dict[int, bytes] = {}
    pairs = 0
    for _ in range(25):
        scores = torch.rand(rows, keys, generator=generator)
        other = torch.where(torch.rand(rows, keys, generator=generator) < 0.03, 1 - scores, scores)
        windows = torch.tensor([0, keys]).repeat(rows, 1)
        windows[:, 1] -= torch.randint(0, 2, (rows,), generator=generator) * 19
        one = topk_select(scores, topk, windows.int(), fingerprints=True)
        two = topk_select(other, topk, windows.roll(1, 0).int(), fingerprints=True)
        sets_equal, prints_equal = (one[0] == two[0]).all(dim=1), one[2] == two[2]
        assert torch.equal(sets_equal, prints_equal)
        assert 0.05 < sets_equal.float().mean() < 0.95
        pairs += rows
        again = topk_select(scores + 0.25, topk, windows.int(), fingerprints=True)
        assert torch.equal((one[0] == again[0]).all(dim=1), one[2] == again[2])
        pairs += rows
        for indices, fingerprint in zip(one[0][:400], one[2][:400].tolist(), strict=True):
            assert seen.setdefault(fingerprint, indices.numpy().tobytes()) == indices.numpy().tobytes()
    assert pairs == 10**6


def test_a_fingerprint_is_the_sum_of_splitmix64():
    def mix(index: int) -> int:  # the published generator, state (index + 1) * gamma
        z = (index + 1) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert mix(0) == 0xE220A8397B1DCDAF  # its first output for seed 0
    scores = torch.rand(1, 500)
    indices, _, fingerprint = topk_select(scores, 100, fingerprints=True)
    assert fingerprint.item() % 2**64 == sum(map(mix, indices[0].tolist())) % 2**64


@over(ONE)
def test_slots_keep_the_order_of_logical_indices(case, target):
    scores = torch.arange(300.0, device=target.device).repeat(2, 1)
    wide = torch.tensor([[9, 2, 7, 0, 5, 77], [1, 3, 4, 6, 8, 77]], dtype=torch.int32, device=target.device)
    table, sequences = wide[:, :5], torch.tensor([1, 0], dtype=torch.int32, device=target.device)
    windows = torch.tensor([[0, 300], [60, 130]], dtype=torch.int32, device=target.device)
    slots = topk_select(scores, 70, windows, table, sequences)[0]
    logical = topk_select(scores, 70, windows)[0].long()
    for row, sequence in enumerate((1, 0)):
        assert torch.equal(slots[row].long(), table[sequence].long()[logical[row] // 64] * 64 + logical[row] % 64)
    assert slots[1].diff().lt(0).any()  # slots need not ascend


@over(ONE, harness.GPUS)
def test_the_gpu_cuts_windows_and_tables_to_what_is_there(case, target):
    scores = torch.arange(300.0, device=target.device).repeat(5, 1)
    windows = torch.tensor([[-9, 4], [298, 999], [9, 3], [400, 500], [0, 2**31 - 1]], dtype=torch.int32)
    windows = windows.to(target.device)
    assert chosen(scores, 3, windows=windows) == [[1, 2, 3], [298, 299], [], [], [297, 298, 299]]
    table = torch.zeros(2, 2, dtype=torch.int32, device=target.device)
    sequences = torch.tensor([0, 1, 2, -1, 2**31 - 1], dtype=torch.int32, device=target.device)
    assert chosen(scores, 2, block_table=table, sequences=sequences) == [[62, 63], [62, 63], [], [], []]


BAD = torch.zeros(3, 200)
WINDOWS = torch.tensor([[0, 200], [5, 9], [0, 0]], dtype=torch.int32)
TABLE = {"block_table": torch.zeros(2, 4, dtype=torch.int32), "sequences": torch.tensor([0, 1, 1], dtype=torch.int32)}


def _changed(tensor: torch.Tensor, place: tuple, value: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scores": torch.zeros(3, 4, dtype=torch.bfloat16)}, "scores must be f32[rows, keys], with unit stride"),
        ({"scores": torch.zeros(4, 3).t()}, "got torch.float32[3, 4] with strides [1, 3] on cpu"),
        ({"scores": torch.zeros(3, 4, requires_grad=True)}, "requires grad, but topk_select has no gradient"),
        ({"scores": torch.zeros(1, 1).expand(1, 2**31)}, "scores must be f32[rows, keys]"),
        ({"topk": 0}, "topk must be from 1 to 2147483647; got 0"),
        ({"topk": -3}, "topk must be from 1 to 2147483647; got -3"),
        ({"windows": WINDOWS[:2]}, "windows must be i32[rows, 2], where rows is 3"),
        ({"windows": WINDOWS.long()}, "windows must be i32[rows, 2]"),
        ({"windows": WINDOWS.to("meta")}, "all tensors must be on one device"),
        ({"block_table": TABLE["block_table"]}, "sequences must be given together with block_table; got None"),
        ({"sequences": TABLE["sequences"]}, "sequences must be given together with block_table"),
        (TABLE | {"sequences": TABLE["sequences"][:2]}, "sequences must be i32[rows], where rows is 3"),
    ],
)  # fmt: skip
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(topk_select, **({"scores": BAD, "topk": 5} | change))
    assert message.startswith("topk_select: ") and sentence in message


@pytest.mark.parametrize("check_indices", [False, True])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"windows": _changed(WINDOWS, (1, 0), -1)}, "windows[1] must be a range within the 200 keys; got [-1, 9]"),
        ({"windows": _changed(WINDOWS, (1, 1), 3)}, "windows[1] must be a range within the 200 keys; got [5, 3]"),
        ({"windows": _changed(WINDOWS, (0, 1), 201)}, "windows[0] must be a range within the 200 keys; got [0, 201]"),
        (TABLE | {"sequences": _changed(TABLE["sequences"], (2,), 2)},
         "sequences[2] must be a row of block_table, which has 2; got 2"),
        (TABLE | {"sequences": _changed(TABLE["sequences"], (0,), -1)},
         "sequences[0] must be a row of block_table, which has 2; got -1"),
        (TABLE | {"block_table": torch.zeros(2, 3, dtype=torch.int32)},
         "the window of row 0 must end within the 3 pages of block_table; got [0, 200]"),
        (TABLE | {"block_table": _changed(TABLE["block_table"], (1, 3), -7)},
         "block_table[1, 3] must be a page of the cache, since the window of row 1 uses it; got -7"),
    ],
)  # fmt: skip
def test_indices_out_of_range_are_answered_with_the_same_sentence_by_both_checks(change, sentence, check_indices):
    by_whom = ValueError if check_indices else glm5_ops.Error  # torch's operations before, or the kernel's door
    with pytest.raises(by_whom) as raised:
        topk_select(**({"scores": BAD, "topk": 5, "check_indices": check_indices} | change))
    assert str(raised.value).startswith("topk_select: ") and sentence in str(raised.value)


def test_entries_that_no_window_uses_may_be_anything():
    table = torch.full((2, 9), -1, dtype=torch.int32)
    table[1, 1] = 4
    sequences, windows = torch.ones(3, dtype=torch.int32), torch.tensor([[64, 128], [70, 71], [0, 0]]).int()
    for check_indices in (False, True):
        got = topk_select(BAD, 2, windows, table, sequences, check_indices=check_indices)[0]
        assert got.tolist() == [[256, 257], [262, -1], [-1, -1]]


def test_a_window_is_checked_on_the_device_when_asked():
    for target in harness.GPUS:
        with target.active():
            windows = _changed(WINDOWS, (0, 1), 201).to(target.device)
            message = harness.message_of(topk_select, BAD.to(target.device), 5, windows, check_indices=True)
        assert "windows[0] must be a range within the 200 keys; got [0, 201]" in message


def test_registration():
    harness.check_registration("topk_select", torch.randn(3, 90), 20, None, None, None, True, True, False)
    windows = torch.tensor([[0, 90], [3, 7], [0, 0]], dtype=torch.int32)
    harness.check_registration("topk_select", torch.randn(3, 90), 20, windows)


def test_compiles_and_exports():
    class Select(torch.nn.Module):
        def forward(self, scores):
            indices, margins, fingerprints = topk_select(scores.relu(), 20, margins=True, fingerprints=True)
            return indices + 1, margins, fingerprints

    scores = torch.randn(3, 90)
    compiled = torch.compile(Select(), fullgraph=True, dynamic=True, backend="aot_eager")
    for x in (scores, torch.randn(5, 33)):
        harness.check_same_bits("compiled", compiled(x), Select()(x))
    exported = torch.export.export(Select(), (scores,)).module()
    harness.check_same_bits("exported", exported(scores), Select()(scores))
