"""What nvcc makes of every kernel: no spills, no serialised wgmma, no local memory, and Hopper's own instructions."""

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "ops").glob("*/*sm90.cu"))
FLAGS = ["-std=c++20", "-O3", "-gencode", "arch=compute_90a,code=sm_90a", "--expt-relaxed-constexpr", "-Xptxas", "-v"]

# Instructions that a kernel must contain, by a pattern of its mangled name; the first that matches counts.
INSTRUCTIONS = {
    r"fp8_gemm_kernel": {"QGMMA", "UTMALDG"},  # FP8 wgmma and the copy engine; grouped_gemm's too
    r"(gemm|wgrad)_bf16_kernel": {"HGMMA", "UTMALDG"},  # bf16 wgmma
    r"indexer_(logits|topk)_kernel.*e4m3": {"QGMMA", "UTMALDG"},
    r"indexer_(logits|topk)_kernel.*bf16": {"HGMMA", "UTMALDG"},
    # Keys that lie anywhere come by cp.async.
    r"indexer_logits_(at|at_bwd|bwd_queries)_kernel.*e4m3": {"QGMMA", "LDGSTS"},
    r"indexer_logits_(at|at_bwd|bwd_queries|bwd_keys)_kernel.*bf16": {"HGMMA", "LDGSTS"},
    r"sparse_mla_(attention|attention_bwd|probabilities|decode)_kernel": {"HGMMA", "LDGSTS"},  # gathered by cp.async
}
# What ptxas says when it waits for every wgmma at once, or ignores setmaxnreg.
WARNINGS = re.compile(r"\bC75\d\d\b")


def folder_of(package: str) -> Path | None:
    """A package's folder, without importing it."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0]) if folders else None


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the path, or from NVIDIA's wheels."""
    nvidia = folder_of("nvidia")
    wheels = sorted(nvidia.glob(f"*/bin/{name}")) if nvidia else []
    return shutil.which(name) or (str(wheels[0]) if wheels else None)


def cutlass() -> Path | None:
    package = folder_of("cutlass_library")
    include = package / "source" / "include" if package else None
    return include if include and (include / "cute").is_dir() else None


def missing() -> str | None:
    if tool("nvcc") is None:
        return "no nvcc: install the CUDA toolkit, or GLM5_OPS_CUDA=wheels takes it from PyPI"
    if tool("nvdisasm") is None:
        return "no nvdisasm: pip install nvidia-cuda-nvdisasm"
    return None if cutlass() else "no CUTLASS headers: pip install nvidia-cutlass==4.2.0.0"


pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@dataclass(frozen=True)
class Kernel:
    name: str
    report: str  # what ptxas said of it
    instructions: dict[str, int]  # mnemonic without its modifiers -> count

    def faults(self) -> list[str]:
        found = []
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", self.report)
        if spills is None or any(int(count) for count in spills.groups()):
            found.append(f"{self.name}: {spills[0] if spills else 'ptxas reported no spill counts'}")
        found += [f"{self.name}: {line.strip()}" for line in self.report.splitlines() if WARNINGS.search(line)]
        found += [f"{self.name}: {count} {op}" for op, count in self.instructions.items() if op in ("LDL", "STL")]
        wanted = next((ops for pattern, ops in INSTRUCTIONS.items() if re.search(pattern, self.name)), set())
        return found + [f"{self.name}: no {op}" for op in sorted(wanted - self.instructions.keys())]


def counted(disassembly: str) -> dict[str, dict[str, int]]:
    """Kernel -> mnemonic -> count, from what nvdisasm prints."""
    kernels: dict[str, dict[str, int]] = {}
    counts: dict[str, int] = {}
    for line in disassembly.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            counts = kernels.setdefault(section[1], {})
        elif operation := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)", line):
            counts[operation[1]] = counts.get(operation[1], 0) + 1
    return kernels


def compile_kernels(source: Path, folder: Path) -> list[Kernel]:
    cubin = folder / "kernels.cubin"
    includes = [f"-I{ROOT / 'csrc'}", "-isystem", str(cutlass())]
    command = [tool("nvcc"), *FLAGS, *includes, "-cubin", str(source), "-o", str(cubin)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    shown = subprocess.run([tool("nvdisasm"), "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    # ptxas prints a block per kernel and its warnings before them, each with the kernel's name.
    blocks = dict(re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", built.stderr, re.S))
    warnings = [line for line in built.stderr.splitlines() if WARNINGS.search(line)]
    return [
        Kernel(name, blocks.get(name, "") + "\n".join(w for w in warnings if f"'{name}'" in w or "'" not in w), counts)
        for name, counts in counted(shown).items()
    ]


def faults_of(text: str, folder: Path) -> list[str]:
    """The faults of one planted kernel."""
    source = folder / "planted_sm90.cu"
    source.write_text(text)
    return [fault for kernel in compile_kernels(source, folder) for fault in kernel.faults()]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: f"{s.parent.name}/{s.stem}")
def test_kernels_are_what_hopper_wants(source, tmp_path):
    kernels = compile_kernels(source, tmp_path)
    assert kernels, f"{source} has no kernel"
    assert [fault for kernel in kernels for fault in kernel.faults()] == []


def test_a_spill_is_found(tmp_path):
    loads = "".join(f"f32 v{i} = volatile_in[{i}];" for i in range(96))
    stores = "".join(f"volatile_out[{i}] = v{i} * v{95 - i};" for i in range(96))
    body = f"const volatile f32* volatile_in = in; volatile f32* volatile_out = out; {loads} {stores}"
    text = f"""#include "core/types.h"
using namespace glm5;
__global__ __launch_bounds__(1024, 2) void spilling_kernel(const f32* in, f32* out) {{ {body} }}"""
    assert any("spill" in fault for fault in faults_of(text, tmp_path))


def test_a_run_time_index_into_registers_is_found(tmp_path):
    text = """
__global__ void indexing_kernel(const int* in, int* out) {
  int values[64];
  for (int i = 0; i < 64; ++i) values[i] = in[i];
  for (int i = 0; i < 64; ++i) out[i] = values[in[i] & 63];
}"""
    assert any("STL" in fault for fault in faults_of(text, tmp_path))


def test_a_serialised_wgmma_is_found(tmp_path):
    # The second product starts under a condition while the first is under way.
    text = """#include "cuda/ptx/wgmma.cuh"
using namespace glm5;
__global__ __launch_bounds__(128, 1) void serialised_kernel(const int* go, f32* out, u64 a, u64 b) {
  f32 even[64], odd[64] = {}, total = 0;
  ptx::wgmma_fence();
  ptx::wgmma_m64k32_f32_e4m3_e4m3(even, a, b, false);
  ptx::wgmma_commit_group();
  for (int i = 0; i < 9; ++i) {
    if (go[i]) {
      ptx::wgmma_fence();
      ptx::wgmma_m64k32_f32_e4m3_e4m3(odd, a, b, false);
      ptx::wgmma_commit_group();
      ptx::wgmma_wait_group<1>();
    }
    for (int j = 0; j < 64; ++j) total += even[j];
  }
  ptx::wgmma_wait_group<0>();
  for (int j = 0; j < 64; ++j) total += odd[j];
  out[threadIdx.x] = total;
}"""
    assert any(WARNINGS.search(fault) for fault in faults_of(text, tmp_path))


def test_a_missing_instruction_is_found(tmp_path):
    text = "__global__ void fp8_gemm_kernel(float* out) { out[threadIdx.x] = 1; }"
    found = faults_of(text, tmp_path)
    assert [fault.rsplit(" ", 1)[1] for fault in found] == ["QGMMA", "UTMALDG"]
