"""describe shows everything of an op, from the surface alone."""

import pytest

from glm5_ops import ops


@pytest.mark.parametrize("op", ops.__all__)
def test_an_op_is_described(command, op):
    said = command("describe", op)
    assert said.code == 0
    assert said.out.startswith(f"{op}(")
    for part in ("Contract:", "Runs here on: cpu (", "Judged by:", "Cases:"):
        assert part in said.out


def test_a_list_of_all(command):
    said = command("describe")
    assert said.code == 0 and [line.split()[0] for line in said.out.splitlines()[1:]] == sorted(ops.__all__)


def test_a_document(command):
    (gemm,) = command("describe", "gemm", "--json").document["ops"]
    assert gemm["backward"] and gemm["contract"]["a"] == "bf16|f32[m, k] either" and gemm["edges"]
    for op, line in (
        ("gemm_into", "a"), ("indexer_logits_paged", "block_table"), ("indexer_logits_bwd", "d_weights"),
    ):  # fmt: skip
        (described,) = command("describe", op, "--json").document["ops"]
        assert not described["backward"] and line in described["contract"]


def test_files_are_named_in_a_checkout_and_omitted_elsewhere(command, monkeypatch):
    monkeypatch.setattr("glm5_ops.cli._repository.repository", lambda: None)
    assert command("describe", "gemm", "--json").document["ops"][0]["files"] == []
