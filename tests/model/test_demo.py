"""The demo's model: sizes that the CUDA kernels take, the same start in FP8 and bf16, the same losses every time."""

import argparse

import pytest
import torch
from torch import nn

from glm5_ops.cli import _demo_attention, _demo_indexer, demo
from glm5_ops.cli._output import Output, UsageError
from glm5_ops.model import Fp8Linear

SMALL = demo.Sizes(width=64, heads=2, layers=1, hidden=64, context=32, batch=2)


def test_the_cuda_kernels_accept_every_linear_layer():
    fp8, bf16 = demo.make_trainees(demo.Sizes(), "cpu")
    layers = [m for m in fp8.model.modules() if isinstance(m, Fp8Linear)]
    assert len(layers) == 4 * demo.Sizes.layers + 1
    for layer in layers:
        # k of the forward product is in_features, of dgrad out_features; wgrad's tokens are padded by the layer
        assert layer.in_features % 16 == 0 and layer.out_features % 16 == 0, layer
    assert not [m for m in bf16.model.modules() if isinstance(m, Fp8Linear)]
    assert not [m for m in fp8.model.modules() if isinstance(m, nn.Linear)]


def losses(steps: int) -> list[list[float]]:
    text, _ = demo.standard_library()
    trainees = demo.make_trainees(SMALL, "cpu")
    demo.train(trainees, text, "cpu", seconds=1, steps=steps, show=lambda part, text: None)
    return [t.losses for t in trainees]


def test_both_models_start_alike_and_learn_alike():
    fp8, bf16 = losses(60)
    assert fp8[0] == pytest.approx(bf16[0], abs=0.02), "the same weights and batch, up to FP8's rounding"
    assert fp8[-1] < fp8[0] - 1 and bf16[-1] < bf16[0] - 1
    assert fp8[-1] == pytest.approx(bf16[-1], abs=0.15)


def test_the_same_losses_every_time():
    assert losses(4) == losses(4)


def test_the_text_is_cut_into_what_is_learnt_and_what_is_kept():
    learn, judge = demo.standard_library()
    assert len(learn) > 10 * len(judge) > 10_000
    (stretch,) = (next(demo.batches(learn, SMALL, "cpu", seed)) for seed in (1,))
    assert stretch.shape == (SMALL.batch, SMALL.context + 1) and stretch.dtype == torch.long


def test_the_indexer_finds_where_the_text_repeats_itself(capsys):
    lines = b"".join(b"line %d has its own words\n" % (i * i) for i in range(160))
    text = torch.frombuffer(bytearray(lines), dtype=torch.uint8)
    found = _demo_indexer.show(text, "cpu", Output(False))
    assert set(found["same"].values()) == {True} and len(found["same"]) == 6
    context = text[found["place"] - 7 : found["place"] + 1].tolist()
    for key in found["best"]:
        assert key < found["place"] and text[key - 7 : key + 1].tolist() == context
    assert capsys.readouterr().out.count(found["fingerprint"]) == 6


def test_the_indexers_keys_are_those_before_the_place():
    inputs = _demo_indexer.operands(torch.arange(300).to(torch.uint8), 50, "cpu")
    assert inputs["windows"].tolist() == [[0, place] for place in range(250, 300)]
    assert inputs["q"].shape == (50, 32, 128) and inputs["k"].shape == (300, 128)


def test_attention_guesses_the_next_byte_of_a_text_that_repeats_itself():
    lines = b"".join(b"every %d lines look alike\n" % (i % 3) for i in range(170))
    text = torch.frombuffer(bytearray(lines), dtype=torch.uint8)
    found = _demo_attention.show(text, "cpu", Output(False))
    assert set(found["same"].values()) == {True} and len(found["same"]) == 6
    assert found["right"] > 0.9 > 0.3 > found["commonest"]


def test_a_changed_cache_is_seen():
    text = torch.arange(300).to(torch.uint8)
    inputs = _demo_attention.operands(text, torch.arange(300 - 20, 300).int().view(20, 1).repeat(1, 8), "cpu")
    out, lse = inputs.decoded(slice(None))
    assert all(_demo_attention._again(inputs, out, lse).values())
    inputs.cache[inputs.slots[290] // 64, inputs.slots[290] % 64, 600] ^= 64
    assert not all(_demo_attention._again(inputs, out, lse).values())


def test_the_command_trains_draws_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "Sizes", lambda: SMALL)
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    arguments = parser.parse_args(["--steps", "3", "--out", str(tmp_path / "new"), "--sample", "20"])
    assert demo.run(arguments, Output(False)) == 0
    printed = capsys.readouterr().out
    assert "fp8" in printed and "bf16" in printed and "100%  step 3" in printed and "goes on from 'def '" in printed
    assert (tmp_path / "new" / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="--seconds and --steps must be above 0"):
        demo.run(parser.parse_args(["--steps", "0"]), Output(False))
