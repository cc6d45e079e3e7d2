"""Swizzles, descriptors, arithmetic, mbarriers, tensor maps and the race check, as C++ programs without a kernel."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.emulator import build

HERE = Path(__file__).parent
PARTS = ("wgmma_math", "mbarrier", "tensor_map", "clocks", "warp_order", "race_check")


def _run(program, folder, *include, parts=PARTS):
    compiler = shutil.which("g++") or shutil.which("c++")
    # The headers of the toolkit, by its compiler's own account.
    shown = subprocess.run([build.nvcc_path(), "--dryrun", "-E", "none.cu"], capture_output=True, text=True).stderr
    toolkit = Path(next(line.split("=", 1)[1] for line in shown.splitlines() if line.startswith("#$ TOP="))) / "include"
    includes = [f"-I{path}" for path in (HERE / "csrc", build.ROOT / "csrc", toolkit, toolkit / "cccl", *include)]
    sources = [str(HERE / "unit" / f"{program}.cpp"), *(str(HERE / "csrc" / f"{part}.cpp") for part in PARTS)]
    command = [
        compiler,
        "-std=c++20",
        "-O1",
        "-march=x86-64-v3",
        "-DNDEBUG",
        "-w",
        *includes,
        *sources,
        "-o",
        str(folder / program),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    done = subprocess.run([str(folder / program)], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("ERROR: cast_smem_ptr")]
    assert done.returncode == 0, "\n".join(lines)
    return lines


def test_parts(tmp_path):
    assert _run("async_parts", tmp_path) == ["0 failures"]


def test_descriptors_and_swizzles_agree_with_cute(tmp_path):
    spec = find_spec("cutlass_library")
    if spec is None:
        pytest.skip("the CUTLASS headers are not installed: pip install nvidia-cutlass==4.2.0.0")
    cutlass = Path(spec.submodule_search_locations[0]) / "source" / "include"
    assert _run("wgmma_layouts", tmp_path, cutlass) == ["0 layouts differ"]


def test_another_gpu_is_answered_with_a_sentence(tmp_path):
    sentence = "gemm needs a GPU of compute capability 9.0 (H100, H200, H800, H20); device 0 has 8.6"
    (line,) = _run("other_gpu", tmp_path, parts=())
    assert line.startswith(sentence)
