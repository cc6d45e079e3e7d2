"""Asked wrongly: a sentence, exit code 2, no traceback."""

import json

import pytest

import glm5_ops.cli
from glm5_ops.cli._output import Output, as_json

GEMM = ("verify", "gemm", "--case", "m=1,n=2,k=3")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("verify", "--frobnicate"), "unrecognized arguments: --frobnicate"),
        (("verify", "gem"), "there is no 'gem' here; did you mean gemm?"),
        (("describe", "topk"), "there is no 'topk' here; There are: dequantize_fp8, fp8_gemm"),
        (("bench", "gemm_into"), "did you mean gemm?"),
        (("verify", "--case", "m=1,n=2,k=3"), "--case belongs to one op"),
        (("verify", "gemm", "--case", "m=1"), "a case of GemmCase also needs n, k; got 'm=1'"),
        (("verify", "gemm", "--case", "m=1,n=2,k=3,x=4"), "a case of GemmCase has seed, m, n, k"),
        (("verify", "gemm", "--case", "m=1,n=two,k=3"), "n must be of type int; got 'two'"),
        (("verify", "gemm", "--case", "m=-1,n=2,k=3"), "m must be 0 or more; got -1"),
        (("verify", "gemm", "--case", "m=1,n=2,k=3,dtype=f8"), "dtype cannot be 'f8'"),
        (("verify", "gemm", "--case", "m=1000000000,n=2,k=1000000000"), "cannot be made"),
        (("verify", "gemm", "--isa", "sse"), "invalid choice: 'sse'"),
        (("verify", "--candidate", "a:b"), "--candidate stands in for one op"),
        ((*GEMM, "--candidate", "nonsense"), "must be package.module:function; got 'nonsense'"),
        ((*GEMM, "--candidate", "no_such_module:f"), "importing no_such_module failed: ModuleNotFoundError"),
        ((*GEMM, "--candidate", "math:no_such"), "math has no function 'no_such'"),
        (("bench", "--compare", "none.json", "none.json"), "none.json cannot be read as a result of"),
        (("bench", "--json-file", "no/such/folder.json"), "there is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_a_sentence(command, words, sentence):
    said = command(*words)
    assert said.code == 2
    assert said.err.startswith("glm5-ops") and sentence in said.err
    assert "Traceback" not in said.err and said.out == ""
    as_document = command(*words, "--json")
    if "invalid choice: 'frob" not in said.err:
        assert sentence in as_document.document["error"]


def test_an_absent_gpu_is_a_sentence(command, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = command(*GEMM, "--device", "cuda")
    assert said.code == 2 and "--device cuda needs a GPU that torch can use" in said.err


def test_the_emulator_is_named_where_it_is_missing(command, monkeypatch):
    monkeypatch.setattr("glm5_ops.cli._emulated.repository", lambda: None)
    said = command("verify", "--emulated")
    assert said.code == 2 and "tests/emulator" in said.err


def test_an_interrupt_is_clean(command, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(glm5_ops.cli, "_run", interrupt)
    said = command("verify")
    assert said.code == 130 and "Traceback" not in said.err


def test_a_missing_library_is_a_sentence_and_a_failure(command, monkeypatch):
    def absent(*_):
        raise ImportError("glm5_ops.gemm is not available: no torch")

    monkeypatch.setattr("glm5_ops.cli.verify.chosen_functions", absent)
    said = command("verify", "--json")
    assert said.code == 1 and "not available" in said.document["error"]


def test_without_a_command_the_help_is_shown(command):
    said = command()
    assert said.code == 2 and "doctor" in said.out


def test_plain_tables_are_aligned(capsys):
    Output(False).table(["op", "us"], [["a", "1.0"], ["longer", "10.0"]])
    assert capsys.readouterr().out == "  op        us\n  a        1.0\n  longer  10.0\n"


def test_what_json_cannot_say_becomes_a_word():
    assert json.loads(json.dumps(as_json({"error": float("inf"), "of": [1.5, float("nan")]}), allow_nan=False)) == {
        "error": "inf",
        "of": [1.5, "nan"],
    }
