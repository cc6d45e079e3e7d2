"""verify accepts what is right, rejects every kind of wrong, and says how to see it again."""

import shlex

import pytest

from glm5_ops import _native
from glm5_ops.cli._exam import CHECKS

CASE = ("--case", "m=17,n=40,k=72,dtype=f32,out=f32")
# An honest gemm, rows and threads apart: every line below spoils it in one way, and one check must see it.
HONEST = """
import torch
state = {"calls": 0}
def exact(a, b):
    return (a.double() @ b.double().mT)
def f(a, b, out_dtype):
    state["calls"] += 1
    out = exact(a, b).to(out_dtype)
    SPOIL
    return out
"""
FAULTS = {
    "reference": "out *= 1.001",
    "reference (one element)": "out[-1, -1] += 1e-3",
    "reference (a wider type)": "out = out.double()",
    "reference (two outputs)": "out = (out, out)",
    "reference (an exception)": "raise RuntimeError('lost a tile')",
    "inputs": "a[0, 0] = 0",
    "rerun": "out += 1e-7 * (state['calls'] % 3 == 2) * out.sign()",
    "threads": "out *= 1 + 2e-7 * (torch.get_num_threads() == 1)",
    "batch": "out *= 1 + 2e-7 * (a.shape[0] == 1)",
}


def test_an_op_passes(command):
    said = command("verify", "gemm", *CASE, "--json")
    assert said.code == 0
    (result,) = said.document["ops"]["gemm"]
    assert said.document["passed"] and result["passed"] and result["error"] <= result["allowed"] == 2
    expected = set(CHECKS) if _native.current_isa() > 0 else set(CHECKS) - {"isas"}
    assert set(result["passes"]) == expected


def test_every_op_passes_its_quick_exam(command):
    said = command("verify", "--quick")
    assert said.code == 0, [line for line in said.out.splitlines() if line.startswith("FAIL")]


def test_a_table_is_shown(command):
    said = command("verify", "gemm", *CASE)
    assert said.code == 0 and said.out.splitlines()[-1].endswith("PASS")


def test_an_honest_candidate_passes(command, candidate):
    said = command("verify", "gemm", *CASE, "--candidate", candidate(HONEST.replace("SPOIL", "pass")))
    assert said.code == 0, said.out


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoiled_candidate_is_rejected_by_the_check_for_it(command, candidate, fault):
    name = candidate(HONEST.replace("SPOIL", FAULTS[fault]))
    said = command("verify", "gemm", *CASE, "--candidate", name, "--json")
    assert said.code == 1
    (result,) = said.document["ops"]["gemm"]
    assert fault.split()[0] in result["failures"], result


def test_an_instruction_set_that_differs_is_found(command, monkeypatch):
    if _native.current_isa() == 0:
        pytest.skip("this machine has the generic kernels alone")
    import glm5_ops

    honest = glm5_ops.gemm
    monkeypatch.setattr(glm5_ops, "gemm", lambda **kw: honest(**kw) * (1 + 2e-7 * (_native.current_isa() == 0)))
    said = command("verify", "gemm", *CASE, "--json")
    assert said.code == 1 and set(said.document["ops"]["gemm"][0]["failures"]) == {"isas"}


def test_the_reproduction_line_works_when_pasted(command, candidate):
    name = candidate(HONEST.replace("SPOIL", "out *= 1 + 0.01 * (a.shape[0] == 33)"))
    said = command("verify", "gemm", "--candidate", name, "--seed", "7")
    assert said.code == 1
    line = next(line for line in said.out.splitlines() if "again: " in line).split("again: ")[1]
    words = shlex.split(line)
    again = command(*words[words.index("verify") :], "--json")
    assert again.code == 1 and len(again.document["ops"]["gemm"]) == 1
    assert "seed=7" in line


def test_a_limited_instruction_set_is_used_and_named(command):
    said = command("verify", "gemm", *CASE, "--isa", "generic", "--json")
    assert said.code == 0 and said.document["isa"] == "generic"
    assert "isas" not in said.document["ops"]["gemm"][0]["passes"], "with generic alone there is nothing to compare"


def test_an_instruction_set_above_this_machine_is_refused(command):
    if _native.detected_isa() == len(_native.isa_names()) - 1:
        pytest.skip("this machine has them all")
    said = command("verify", "gemm", *CASE, "--isa", "amx")
    assert said.code == 2 and "this machine has" in said.err
