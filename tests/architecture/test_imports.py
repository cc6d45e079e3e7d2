"""The dependency rule, executable: who may include or import whom, and which parts every op must have."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC, PYTHON = ROOT / "csrc", ROOT / "python" / "glm5_ops"
OPS = sorted(p.name for p in (CSRC / "ops").iterdir())
ISA_FILES = r"csrc/ops/\w+/\w*(avx2|avx512|amx)\.cpp"

# A file whose path matches the first pattern must not include or import what matches the second.
RULES = [
    (r"csrc/.*", r"torch|ATen|c10"),
    (r"csrc/core/(?!bind)", r"nanobind|Python\.h"),
    (r"csrc/core/.*", r"cuda|cutlass|cute|^cpu/|^ops/"),
    (r"csrc/cpu/.*", r"cuda|cutlass|cute|nanobind|core/bind|^ops/"),
    (r"csrc/cuda/.*", r"nanobind|core/bind|^ops/|^cpu/"),
    (r"csrc/ops/\w+/\w+\.cu$", r"nanobind|core/bind|^cpu/"),
    (r"csrc/ops/\w+/(generic|cpu)\.cpp", r"nanobind|core/bind|cuda|immintrin"),
    (r"csrc/ops/\w+/bind\.cpp", r"^cpu/|^cuda/|immintrin"),
    # No standard library: an inline function of it, compiled for one instruction set, may be linked for all.
    (ISA_FILES, r"nanobind|core/(bind|error)|cuda|cpu/(isa|parallel)|^(?!ops/|core/|cpu/|immintrin\.h)"),
    (r"python/glm5_ops/ops/\w+\.py", r"glm5_ops\.(reference|workloads|model|cli|bench)"),
    (r"python/glm5_ops/reference/\w+\.py", r"glm5_ops(?!\.reference)"),
    (r"python/glm5_ops/workloads/\w+\.py", r"glm5_ops\.(ops|reference|_native|model|cli|bench)"),
    (r"python/glm5_ops/model/\w+\.py",
     r"glm5_ops\.(ops|_native|workloads|cli|bench|distributed)|glm5_ops import _native"),
    (r"python/glm5_ops/distributed/\w+\.py", r"glm5_ops\.(ops|_native|workloads|cli|bench)|glm5_ops import _native"),
    (r"bench/.*\.py", r"^tests|glm5_ops\.(ops\.|cli)"),
    (r"tests/(?!cli/).*\.py", r"^bench|glm5_ops\.bench"),
]  # fmt: skip
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)
IMPORT = re.compile(r"^\s*(?:from\s+(\S+)\s+import\s+([\w, ]+)|import\s+(\S+))", re.M)


def sources(root: Path = ROOT) -> list[Path]:
    folders = [root / "csrc", root / "python", root / "bench", root / "tests"]
    return [p for f in folders for p in sorted(f.rglob("*")) if p.suffix in {".h", ".cuh", ".cu", ".cpp", ".py"}]


def used_by(path: Path) -> list[str]:
    text = path.read_text()
    if path.suffix != ".py":
        return INCLUDE.findall(text)
    return [f"{m[0]} import {m[1]}" if m[0] else m[2] for m in IMPORT.findall(text)]


def violations(name: str, used: list[str]) -> list[str]:
    found = []
    for who, what in RULES:
        if re.match(who, name):
            found += [f"{name} must not know {u}" for u in used if re.search(what, u)]
    op = re.match(r"(?:csrc/ops|python/glm5_ops/ops)/([a-z]\w*)", name)
    if op:
        others = "|".join(o for o in OPS if o != op[1])
        found += [f"{name} must not know another op: {u}" for u in used if re.search(rf"ops[/.]({others})\b", u)]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    name = str(path.relative_to(ROOT))
    if name != "python/glm5_ops/ops/__init__.py":
        assert violations(name, used_by(path)) == []


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("csrc/core/tensor.h", "torch/torch.h"),
        ("csrc/core/tensor.h", "nanobind/nanobind.h"),
        ("csrc/ops/gemm/avx2.cpp", "vector"),
        ("csrc/ops/gemm/avx2.cpp", "core/error.h"),
        ("csrc/ops/gemm/generic.cpp", "ops/fp8_gemm/fp8_gemm.h"),
        ("python/glm5_ops/reference/gemm.py", "glm5_ops.ops import gemm"),
        ("python/glm5_ops/ops/gemm.py", "glm5_ops.ops.fp8_gemm import fp8_gemm"),
        ("python/glm5_ops/model/linear.py", "glm5_ops import _native"),
    ],
)
def test_the_rule_sees_a_planted_breach(name, used):
    assert violations(name, [used])


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_all_its_parts(op):
    parts = [
        CSRC / f"ops/{op}/{op}.h", CSRC / f"ops/{op}/cpu.cpp", CSRC / f"ops/{op}/generic.cpp",
        CSRC / f"ops/{op}/bind.cpp", PYTHON / f"ops/{op}.py", PYTHON / f"reference/{op}.py",
        PYTHON / f"workloads/{op}.py", ROOT / f"tests/ops/test_{op}.py", ROOT / f"bench/ops/bench_{op}.py",
    ]  # fmt: skip
    assert [str(p.relative_to(ROOT)) for p in parts if not p.exists()] == []


def test_no_file_is_longer_than_600_lines():
    long = {str(p.relative_to(ROOT)): n for p in sources() if (n := len(p.read_text().splitlines())) > 600}
    assert long == {}


def test_no_launcher_waits_for_its_gpu():
    """So that every op can be captured in a CUDA graph."""
    waits = re.compile(r"cuda(Device|Stream|Event)Synchronize|cudaMemcpy\(|cudaMemset\(|cudaMalloc|cudaFree")
    assert waits.search("cudaStreamSynchronize(stream)") and not waits.search("cudaMemset2DAsync(data)")
    assert [str(p.relative_to(ROOT)) for p in sources() if CSRC in p.parents and waits.search(p.read_text())] == []


def test_the_library_reads_no_environment():
    reads = re.compile(r"\bgetenv\(|os\.environ|os\.getenv")
    readers = [p for p in sources() if "tests" not in p.parts and reads.search(p.read_text())]
    # a benchmark hands its child process the environment that holds torch to an instruction set
    assert [str(p.relative_to(ROOT)) for p in readers if "bench" not in p.name] == []
