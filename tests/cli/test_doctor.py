"""doctor never crashes: what is broken becomes a line with its cause and the command that mends it."""

import pytest

from glm5_ops.cli import _findings, doctor

H200 = {"name": "NVIDIA H200", "architecture": [9, 0]}


def broken(tmp_path, monkeypatch, **modules: str) -> None:
    """Doctor's child sees a package with these files; `torch` stands beside it and hides the real one."""
    package = tmp_path / "glm5_ops"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, text in modules.items():
        (tmp_path if name == "torch" else package).joinpath(f"{name}.py").write_text(text)
    monkeypatch.setattr(doctor, "package_folder", lambda: tmp_path)


def test_a_sound_installation(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command("doctor", "--json")
    assert said.code == 0, said.out
    found = said.document["found"]
    assert found["threads"] == {"shared": True} and found["torch"]["threads"] == found["native"]["threads"]
    assert {row["op"]: row["backward"] for row in said.document["ops"]}["gemm"] == "yes"


def test_plain_text(command):
    said = command("doctor")
    assert said.out.startswith("glm5_ops ") and "  python " in said.out and "quantize_fp8" in said.out


@pytest.mark.parametrize(
    ("modules", "cause", "mend"),
    [
        ({}, "glm5_ops._native is missing", "pip install --force-reinstall --no-deps"),
        ({"_native": "raise ImportError('undefined symbol: f')"}, "undefined symbol: f", "pip install"),
        ({"_native": "import os; os.abort()"}, "the process crashed with SIGABRT", "pip install"),
        ({"_native": "import os; os._exit(3)"}, "the process ended with code 3", "pip install"),
        ({"_native": "raise ImportError(\"No module named 'nanobind_backend'\")"}, "nanobind-backend, is missing",
         "pip install nanobind-backend"),
        ({"_native": "raise ImportError('version `GLIBC_2.38 not found')"}, "built for a newer Linux", "pip install"),
        ({"torch": "raise ImportError(\"No module named 'torch'\")"}, "torch is missing", "pip install 'torch>=2.6'"),
        ({"torch": "raise OSError('no libcublas.so')"}, "importing torch failed: OSError: no libcublas.so", "torch"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_with_its_mend(command, tmp_path, monkeypatch, modules, cause, mend):
    broken(tmp_path, monkeypatch, **modules)
    said = command("doctor")
    assert said.code == 1 and "Traceback" not in said.out
    assert any(line.startswith("FAIL") and cause in line for line in said.out.splitlines()), said.out
    assert mend in said.out
    if "torch" not in modules:
        assert "the extension cannot be imported" in said.out


def machine(**changes) -> dict:
    found = {
        "torch": {"version": "2.13.0", "cuda": "13.0", "threads": 8},
        "native": {"with_cuda": True, "cuda_version": "13.0.88", "detected_isa": "amx", "threads": 8},
        "threads": {"shared": True},
        "cpu": {"flags": sorted(_findings.LEVEL_FLAGS), "cores": 8},
        "gpu": {"driver": True, "status": 0, "cuda": [13, 0], "gpus": [H200]},
    }
    for stage, values in changes.items():
        found[stage] = found[stage] | values
    return found


@pytest.mark.parametrize(
    ("changes", "level", "cause", "mend"),
    [
        (
            {"gpu": {"cuda": [12, 8]}},
            "FAIL",
            "glm5_ops was built with CUDA 13.0.88, but the driver serves CUDA 12.8",
            "580",
        ),
        ({"gpu": {"gpus": [{"name": "RTX 4090", "architecture": [8, 9]}]}}, "WARN", "RTX 4090 (sm_89)", "reference"),
        ({"gpu": {"status": 100, "gpus": []}}, "WARN", "cuInit gave 100", "nvidia-smi"),
        (
            {"native": {"with_cuda": False}},
            "WARN",
            "this build has no CUDA kernels",
            "GLM5_OPS_CUDA=wheels pip install",
        ),
        ({"torch": {"cuda": None, "version": "2.13.0+cpu"}}, "WARN", "is a build for the CPU", "whl/cu130"),
        ({"torch": {"version": "2.5.1"}}, "FAIL", "torch 2.5.1 is too old", "torch>=2.6"),
        ({"torch": {"threads": 1}}, "WARN", "use 1 thread on 8 cores", "OMP_NUM_THREADS=8"),
        ({"threads": {"shared": False}}, "WARN", "do not share one OpenMP runtime", "LD_PRELOAD"),
        ({"native": {"detected_isa": "avx512"}}, "WARN", "the processor has AMX, but Linux refuses it", "Linux 5.16"),
        ({"cpu": {"flags": ["avx2"]}, "native": {"detected_isa": "generic"}}, "WARN", "lacks fma f16c", "qemu"),
    ],
)
def test_findings(changes, level, cause, mend):
    findings = _findings.of(machine(**changes), None)
    assert any(f.level == level and cause in f.cause and mend in f.mend for f in findings), findings


def test_nothing_is_found_where_all_is_well():
    assert _findings.of(machine(), None) == []
    assert _findings.of(machine(gpu={"driver": False}), None) == []
