"""The bench command: verifies first, stores, compares, plots. Nothing here looks at a clock."""

import json
import subprocess

import pytest

from glm5_ops import _native
from glm5_ops.cli import bench

CASE = ("--case", "m=3,n=16,k=32")
WRONG = "import torch\ndef f(a, b, out_dtype):\n    return (a @ b.mT).to(out_dtype) * 1.25\n"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(
        bench.roofline, "measure", lambda device, clock: {"copy_gb_s": 10.0, "tflop_s": {"f32": 0.1, "bf16": 0.1}}
    )


def test_a_run_is_stored_with_all_that_a_reader_needs(command, tmp_path):
    said = command("bench", "gemm", *CASE, "--json-file", tmp_path / "run.json", "--json")
    assert said.code == 0
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored == said.document
    assert {"cpu", "threads", "isa", "torch", "python", "commit", "compiler"} <= set(stored["machine"])
    (record,) = stored["results"]
    assert record["op"] == "gemm" and record["case"] == "m=3,n=16,k=32" and set(record["times"]) == {"ours", "torch"}
    times = record["times"]["ours"]
    assert times["p20_us"] <= times["median_us"] <= times["p80_us"] and len(times["samples_us"]) >= 3


def test_time_of_others_need_not_count(command):
    said = command("bench", "gemm", *CASE, "--busy-time", "--held", "--json")
    assert said.code == 0 and said.document["clock"] == "BusyClock"
    assert command("bench", "gemm", *CASE, "--json").document["clock"] == "CpuClock"


def test_a_table_is_shown(command):
    said = command("bench", "gemm", *CASE)
    assert said.code == 0 and "m=3,n=16,k=32" in said.out and "vs torch" in said.out


def test_what_fails_verify_is_not_timed(command, candidate, monkeypatch):
    def measure(*_):
        raise AssertionError("timed a wrong candidate")

    monkeypatch.setattr(bench, "measure", measure)
    said = command("bench", "gemm", *CASE, "--candidate", candidate(WRONG))
    assert said.code == 1
    assert "is not timed, because it fails verify: reference" in said.out and "again: " in said.out
    document = command("bench", "gemm", *CASE, "--candidate", candidate(WRONG), "--json").document
    assert not document["passed"] and "times" not in document["results"][0]


def stored(file, median: float, machine: dict | None = None):
    samples = [median * (1 + i / 1000) for i in range(20)]
    times = {
        "ours": {"median_us": median, "samples_us": samples},
        "torch": {"median_us": 50.0, "samples_us": [50.0] * 20},
    }
    record = {"op": "gemm", "case": "m=1,n=1,k=1", "device": "cpu", "isa": "avx2", "times": times}
    about = {"cpu": "x", "threads": 2}
    file.write_text(json.dumps({"command": "bench", "machine": machine or about, "results": [record]}))
    return file


@pytest.mark.parametrize(("new", "verdict", "code"), [(120.0, "slower", 1), (80.0, "faster", 0), (100.5, "same", 0)])
def test_two_runs_are_compared(command, tmp_path, new, verdict, code):
    files = stored(tmp_path / "old.json", 100.0), stored(tmp_path / "new.json", new)
    said = command("bench", "--compare", *files, "--json")
    assert said.code == code and [line["verdict"] for line in said.document["lines"]] == [verdict]
    plain = command("bench", "--compare", *files).out
    assert ("gemm m=1,n=1,k=1" in plain) == (verdict != "same"), "only what changed is listed"


def test_a_file_of_something_else_is_refused(command, tmp_path):
    (tmp_path / "a.json").write_text('{"command": "verify"}')
    said = command("bench", "--compare", tmp_path / "a.json", tmp_path / "a.json")
    assert said.code == 2 and "is not a result of" in said.err


def test_torch_is_held_to_the_instruction_set_in_a_child(command, monkeypatch):
    isa = _native.isa_names()[_native.current_isa()]
    children = []

    def child(words, env, check):
        children.append((words, env))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(bench.subprocess, "run", child)
    assert command("bench", "gemm", *CASE, "--isa", isa, "--json").code == 0
    ((words, environment),) = children
    assert words[1:] == ["-m", "glm5_ops", "bench", "gemm", *CASE, "--isa", isa, "--json", "--held"]
    assert environment.items() >= bench.TORCH_HELD_TO[isa].items()


def test_avx2_holds_both_of_torchs_libraries():
    assert bench.TORCH_HELD_TO["avx2"] == {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_a_plot_is_drawn(command, tmp_path):
    pytest.importorskip("matplotlib")
    assert command("bench", "gemm", *CASE, "--plot", tmp_path / "a.png").code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_sentence_is_said(command, tmp_path, monkeypatch):
    def absent(*_):
        raise ImportError("matplotlib")

    monkeypatch.setattr(bench, "plot", absent)
    said = command("bench", "gemm", *CASE, "--plot", tmp_path / "a.png")
    assert said.code == 0 and "pip install matplotlib" in said.err
