"""The wheel as a stranger gets it: its tag and contents, every Python, an empty folder, and builds that must fail."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tests.packaging.interpreters import interpreters

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# What any Linux with a C++ run time has: the module links neither torch nor CUDA.
SYSTEM_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s|libc|libm|libdl|libpthread|librt|ld-linux[-\w]*)\.so\.\d+$")
# One module with the CPU kernels of four ops is far below this; linking nanobind or cudart by accident is above.
MOST_BYTES = 2_000_000


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )


def build(folder: Path, *options: str, cuda: str = "OFF") -> Path:
    """A wheel by ``pip wheel``, isolated: pip brings what the build needs."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder]
    built = run(*command, f"--config-settings=build-dir={folder}/build", *options, ROOT, GLM5_OPS_CUDA=cuda)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def installed(wheel: Path, python: str, folder: Path) -> Path:
    """The wheel and what it depends on, and nothing else, in a folder for PYTHONPATH."""
    done = run(python, "-m", "pip", "install", "-q", "--target", folder, wheel)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    return installed(wheel, sys.executable, tmp_path_factory.mktemp("site"))


def test_one_small_wheel_for_python_3_10_and_later(wheel):
    assert re.fullmatch(r"glm5_ops-[\d.]+-cp310-abi3-linux_\w+\.whl", wheel.name)
    assert wheel.stat().st_size < MOST_BYTES


def test_holds_what_runs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packages = {n.split("/")[1] for n in names if n.startswith("glm5_ops/") and n.count("/") > 1}
    assert packages >= {"bench", "cli", "distributed", "model", "ops", "reference", "workloads"}
    assert packages <= {"bench", "cli", "distributed", "model", "ops", "reference", "workloads"}, (
        "the tests and sources stay home"
    )
    assert "glm5_ops/_native.abi3.so" in names
    assert any(n.endswith("LICENSE") for n in names)
    assert {n.split("/")[0] for n in names} == {"glm5_ops", names[-1].split("/")[0]}
    assert not [n for n in names if "__pycache__" in n]


def test_links_neither_torch_nor_cuda(site):
    shown = run("readelf", "-d", site / "glm5_ops" / "_native.abi3.so")
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", shown.stdout)
    assert needed and all(SYSTEM_LIBRARIES.match(name) for name in needed), needed


def test_gives_no_symbol_away_but_its_door(site):
    shown = run("nm", "-D", "--defined-only", site / "glm5_ops" / "_native.abi3.so")
    names = [line.split()[-1] for line in shown.stdout.splitlines()]
    assert "PyInit__native" in names and not [n for n in names if "glm5" in n]


@pytest.mark.parametrize("version", interpreters())
def test_one_build_imports_under_every_python(version, wheel, tmp_path):
    python = interpreters()[version]
    folder = installed(wheel, python, tmp_path / "site")
    code = "import importlib; m = importlib.import_module('glm5_ops._native'); print(m.isa_names(), m.with_cuda)"
    imported = run(python, "-c", code, cwd=tmp_path, PYTHONPATH=str(folder))
    assert imported.returncode == 0, imported.stderr
    assert "'generic'" in imported.stdout and "False" in imported.stdout
    # With or without torch, doctor says what there is and does not crash.
    doctor = run(python, "-m", "glm5_ops", "doctor", cwd=tmp_path, PYTHONPATH=str(folder))
    assert doctor.returncode in (0, 1) and version in doctor.stdout and "Traceback" not in doctor.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc: a module with CUDA kernels is not built")
def test_a_wheel_with_cuda_kernels_imports_where_there_is_no_gpu(tmp_path):
    folder = installed(build(tmp_path / "dist", cuda="ON"), sys.executable, tmp_path / "site")
    (module,) = folder.glob("glm5_ops/_native*.so")
    needed = run("ldd", module).stdout
    assert "libcud" not in needed and "libtorch" not in needed, (
        "the run time is linked statically, the driver not at all"
    )
    code = "import importlib; print(importlib.import_module('glm5_ops._native').with_cuda)"
    imported = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(folder))
    assert imported.stdout.strip() == "True", imported.stderr
    doctor = run(sys.executable, "-m", "glm5_ops", "doctor", cwd=tmp_path, PYTHONPATH=str(folder))
    assert doctor.returncode in (0, 1) and "no CUDA" not in doctor.stdout and "Traceback" not in doctor.stderr


def test_more_than_one_python_was_there():
    if len(interpreters()) < 2:
        pytest.skip(
            f"only Python {', '.join(interpreters())} is installed here: the stable ABI was tried on one version"
        )
    assert {f"{sys.version_info[0]}.{sys.version_info[1]}"} < set(interpreters())


COMMANDS = ("doctor", "describe fp8_gemm", "verify --quick quantize_fp8", "verify --quick fp8_gemm")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run_in_an_empty_folder_without_a_path(command, site, tmp_path):
    environment = {"PYTHONPATH": str(site), "PATH": ""}
    done = run(sys.executable, "-m", "glm5_ops", *command.split(), cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout and not list(tmp_path.iterdir())
    where = run(sys.executable, "-c", "import glm5_ops; print(glm5_ops.__file__)", cwd=tmp_path, **environment)
    assert Path(where.stdout.strip()).is_relative_to(site)


# Torch versions

ATTRIBUTES_ONLY = """
import torch
del torch.Tensor.__dlpack_c_exchange_api__
assert not hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
import sys
from glm5_ops.cli import main
sys.exit(main(["verify", "--quick"]))
"""


def test_works_without_the_exchange_api_as_on_torch_before_2_10(site, tmp_path):
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip(f"torch {torch.__version__} has no exchange API: every other test reads attributes already")
    done = run(sys.executable, "-c", ATTRIBUTES_ONLY, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stdout + done.stderr


def test_works_with_the_oldest_torch(wheel, tmp_path):
    """torch 2.6, where a build without CUDA can be had; the one with it is 0.8 GB and more of libraries."""
    folder = tmp_path / "site"
    install = (sys.executable, "-m", "pip", "install", "-q", "--target", folder)
    if run(*install, "torch==2.6.0+cpu", "numpy").returncode != 0:
        cpu = ("--timeout", "15", "--retries", "0", "--index-url", "https://download.pytorch.org/whl/cpu")
        if run(*install, *cpu, "torch==2.6.0").returncode != 0:
            pytest.skip("no CPU build of torch 2.6.0 for this Python can be reached from here")
    installed(wheel, sys.executable, folder)
    environment = {"PYTHONPATH": str(folder)}
    version = run(sys.executable, "-c", "import torch; print(torch.__version__)", cwd=tmp_path, **environment)
    assert version.stdout.startswith("2.6.0"), version.stderr
    done = run(sys.executable, "-m", "glm5_ops", "verify", "--quick", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stdout + done.stderr


# Builds


def test_linked_mode_needs_no_backend(tmp_path):
    wheel = build(tmp_path, "--config-settings=cmake.define.GLM5_OPS_LINKED=ON", "--config-settings=wheel.py-api=")
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert f"-{tag}-{tag}-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys, importlib; importlib.import_module('glm5_ops._native'); print('nanobind_backend' in sys.modules)"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout.strip() == "False", done.stderr


def configure(tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    """CMake with a Python that has no packages, and a PATH that has no nvcc."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = Path(sys.executable).parent
    for tool in ("cmake", "ninja", "c++", "g++", "gcc", "cc", "ld", "as", "ar", "ranlib", "uname", "make"):
        if found := shutil.which(tool, path=f"{scripts}{os.pathsep}{os.environ['PATH']}"):
            (tools / tool).symlink_to(found)
    command = ("cmake", "-S", ROOT, "-B", tmp_path / "build", f"-DPython_EXECUTABLE={bare}/bin/python")
    return run(tools / command[0], *command[1:], *options, PATH=str(tools), CUDACXX="", CUDA_PATH="")


@pytest.mark.parametrize("choice", ["ON", "wheels"])
def test_cuda_without_a_toolchain_says_what_to_install(choice, tmp_path):
    done = configure(tmp_path, f"-DGLM5_OPS_CUDA={choice}")
    said = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert (
        f"GLM5_OPS_CUDA={choice} needs a CUDA toolchain and none was found. Install the CUDA toolkit 12.4 or later"
        in said
    )
    assert "GLM5_OPS_CUDA=wheels for pip, which takes the toolchain from PyPI" in said


def test_the_source_distribution_holds_all_that_a_build_needs(tmp_path):
    code = f"from scikit_build_core.build import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    done = run(sys.executable, "-c", code)
    if "No module named 'scikit_build_core'" in done.stderr:
        pytest.skip("scikit-build-core is not installed in this environment (`make test` installs it)")
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.strip().splitlines()[-1]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    tracked = run("git", "ls-files", "csrc", "cmake", "python", "bench").stdout.split()
    wanted = {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", *tracked}
    assert wanted <= names, f"not in the archive: {sorted(wanted - names)}"
    assert not [n for n in names if n.startswith(("build/", ".venv/", ".ci/"))]
