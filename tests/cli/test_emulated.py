"""--emulated: a child process runs the CUDA kernels on the emulator; it judges, counts, and times nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import emulator

ROOT = Path(__file__).parents[2]
CASE = ("--case", "m=40,n=72,k=160")


@pytest.fixture(scope="module")
def emulated():
    """Runs a command in a process of its own; skips where there is no emulator."""
    if reason := emulator.available():
        pytest.skip(reason)

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "glm5_ops", *words], capture_output=True, text=True, cwd=ROOT)

    return run


def test_bench_counts_beside_the_floor(emulated):
    said = emulated("bench", "gemm", *CASE, "--emulated", "--json")
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    assert document["command"] == "bench" and document["emulated"] and document["passed"]
    (record,) = document["results"]
    assert record["op"] == "gemm" and record["case"] == "m=40,n=72,k=160" and record["passed"]
    counts, (launch,) = record["counts"], record["launches"]
    assert counts["floor_bytes"] == 2 * (40 * 160 + 72 * 160 + 40 * 72)
    assert counts["floor_operations"] == 2 * 40 * 72 * 160
    # Whole tiles are computed, each operand is read at least once, and not ten times at this size.
    assert counts["operations"] >= counts["floor_operations"]
    assert 1 <= counts["bytes_ratio"] < 10
    assert counts["operations"] == 2 * launch["multiply_adds"]["wgmma bf16 x bf16"]
    assert "_us" not in said.stdout and "seconds" not in said.stdout, "no times"


def test_bench_shows_a_table(emulated):
    said = emulated("bench", "gemm", *CASE, "--emulated")
    assert said.returncode == 0, said.stderr
    header, row = said.stdout.splitlines()[-2:]
    assert header.split()[:3] == ["op", "and", "case"] and row.split()[:2] == ["gemm", "m=40,n=72,k=160"]
    assert said.stdout.startswith("ok "), "verified first"


def test_verify_judges_and_counts(emulated):
    said = emulated("verify", "gemm", *CASE, "--case", "m=3,n=16,k=32", "--emulated", "--seed", "5", "--json")
    assert said.returncode == 0, said.stderr
    results = json.loads(said.stdout)["ops"]["gemm"]
    assert [result["case"] for result in results] == ["m=40,n=72,k=160,seed=5", "m=3,n=16,k=32,seed=5"]
    assert all(result["passed"] and result["counts"]["floor_bytes"] for result in results)


@pytest.mark.parametrize("name", ["verify", "bench"])
def test_outside_a_checkout_a_sentence_is_said(command, monkeypatch, name):
    monkeypatch.setattr("glm5_ops.cli._emulated.repository", lambda: None)
    said = command(name, "--emulated")
    assert said.code == 2 and "tests/emulator" in said.err and said.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--device", "cuda"), ("verify", "--isa", "generic"), ("verify", "--full"), ("bench", "--quick"),
        ("bench", "--plot", "a.png"), ("bench", "--json-file", "a.json"), ("bench", "gemm", "--candidate", "a:b"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_it_is_refused(command, words):
    said = command(*words, "--emulated")
    option = next(word for word in words if word.startswith("--"))
    assert said.code == 2 and f"not with {option}" in said.err


def test_a_mistake_is_found_before_the_child_starts(command, monkeypatch):
    def start(*_, **__):
        raise AssertionError("a child was started")

    monkeypatch.setattr("glm5_ops.cli._emulated.subprocess.run", start)
    assert "did you mean gemm?" in command("bench", "gem", "--emulated").err
    assert "also needs" in command("verify", "gemm", "--case", "m=1", "--emulated").err
