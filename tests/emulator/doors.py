"""Kernels under the emulator, one variant at a time, clean or with a planted fault.

A *door* (kernels/*.cu) is a small shared library around a launcher of csrc/. `compile_door` builds it from a copy of
the op's folder in which text was replaced; `Lab` calls it with arrays in emulated device memory.
"""

import ctypes
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tests.emulator import build, device

ROOT = Path(__file__).resolve().parents[2]


def find_variant(op, *fields):
    """The index in kVariants of the op's config.h of the first entry that begins with these fields."""
    table = (ROOT / "csrc" / "ops" / op / "config.h").read_text().split("kVariants[] = {", 1)[1].split("};", 1)[0]
    entries = re.findall(r"\{Schedule::([^}]*)\}", table)
    wanted = [str(field) for field in fields]
    return next(i for i, entry in enumerate(entries) if entry.split(", ")[: len(wanted)] == wanted)


def compile_door(op, variant, folder, edits=(), per_row=False):
    """The door of `op` with only `variant`, after `edits`: (file below csrc, old text, new text), each found once."""
    folder, source = Path(folder), op.removesuffix("_bwd").replace("mla_decode", "mla_attention")
    shutil.copytree(ROOT / "csrc" / "ops" / source, folder / "ops" / source, dirs_exist_ok=True)
    shutil.copytree(ROOT / "csrc" / "cuda", folder / "cuda", dirs_exist_ok=True)
    for file, old, new in edits:
        text = (folder / file).read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} places that read: {old}"
        (folder / file).write_text(text.replace(old, new))
    if (folder / "ops" / op / "swap_ab_sm90.cu").exists():
        _keep_one_variant(folder / "ops" / op, variant, per_row)
    if source == "sparse_mla_attention":
        _keep_few_heads(folder / "ops" / source)
    library, emulator = folder / "door.so", build.build()
    cutlass = Path(find_spec("cutlass_library").submodule_search_locations[0]) / "source" / "include"
    command = [
        build.nvcc_path(),
        "-std=c++20",
        "-O3",
        "-lineinfo",
        "--expt-relaxed-constexpr",
        "-gencode",
        "arch=compute_90a,code=compute_90a",
        "-shared",
        "-Xcompiler",
        "-fPIC,-fno-gnu-unique",
        "-cudart",
        "none",
        f"-I{folder}",
        f"-I{ROOT / 'csrc'}",
        f"-isystem={cutlass}",
        str(ROOT / "tests/emulator/kernels" / f"{op}.cu"),
        "-o",
        str(library),
        f"-L{emulator}",
        f"-l:{build.RUNTIME}",
        "-Xlinker",
        f"-rpath={emulator}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return library


def _keep_one_variant(folder, variant, per_row):
    """Drops the launches of the other variants: they cost compile time and are never called."""
    file = folder / "sm90.cu"
    text = file.read_text()
    launches = re.compile(r" *case (\d+)( \+ kVariantCount)?:\s*return launch_[^;]*;\n")

    def keep(match):
        return match.group(0) if int(match.group(1)) == variant and bool(match.group(2)) == per_row else ""

    text = launches.sub(keep, text)
    schedule = (folder / "swap_ab_sm90.cu").read_text()
    if f"case {variant}:" in schedule:
        # Both files have a launch_variant.
        include = f'#include "ops/{folder.name}/kernel_sm90.cuh"'
        text += launches.sub(keep, schedule).replace(include, "").replace("launch_variant", "launch_swapped_variant")
    else:
        text = re.sub(r"return launch_swap_ab\([^;]*;", 'require(false, kOp, ": not in this door");', text)
    file.write_text(text)


def _keep_few_heads(folder):
    """Drops the launches for more than 16 heads, for 512 dims and for caches."""
    for file in (folder / "sm90.cu", folder / "bwd_sm90.cu"):
        text = file.read_text()
        text = re.sub(r" *(if \(heads <= 32\) return )?launch_\w+<(32|64), kQkDim[^>]*>\([^;]*;\n", "", text)
        text = re.sub(r" *if \(decodes\) return launch_for_heads<576, true>\([^;]*;\n", "", text)
        file.write_text(re.sub(r" *(else\n *)?launch_for_heads<512>\([^;]*;\n", "", text))
    file = folder / "decode_sm90.cu"
    text = re.sub(r" *if (constexpr )?\([^;]*\)\s*(return )?launch_decode<(32|64), [^;]*;\n", "", file.read_text())
    file.write_text(text)


class Array:
    """A numpy array in emulated device memory of exactly its extent."""

    def __init__(self, values, name, written=True):
        self.shape, self.dtype, self.bytes = values.shape, values.dtype, values.nbytes
        self.address = device.call("allocate", self.bytes, 0, name.encode())
        self.values[...] = values
        if not written:
            device.call("mark", self.address, self.bytes, device.UNINITIALISED)

    @property
    def values(self):
        buffer = (ctypes.c_uint8 * self.bytes).from_address(self.address)
        return np.frombuffer(buffer, dtype=self.dtype).reshape(self.shape)

    def free(self):
        device.call("free", self.address)


class Tensor2(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("shape", ctypes.c_int64 * 2), ("stride", ctypes.c_int64 * 2)]


class Float2(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("shape", ctypes.c_int64 * 2),
        ("stride", ctypes.c_int64 * 2),
    ]


class Float3(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("shape", ctypes.c_int64 * 3),
        ("stride", ctypes.c_int64 * 3),
    ]


class Bytes(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("shape", ctypes.c_int64 * 1), ("stride", ctypes.c_int64 * 1)]


class Fp8GemmArgs(ctypes.Structure):
    _fields_ = [
        ("a", Tensor2),
        ("a_scales", Tensor2),
        ("b", Tensor2),
        ("b_scales", Tensor2),
        ("b_scales_per_row", ctypes.c_bool),
        ("accumulate", ctypes.c_bool),
        ("out", Float2),
        ("workspace", Bytes),
    ]


class GemmArgs(ctypes.Structure):
    _fields_ = [("a", Float3), ("b", Float3), ("accumulate", ctypes.c_bool), ("out", Float3), ("workspace", Bytes)]


class Outcome:
    def __init__(self, out, check, sentence):
        self.out, self.check, self.sentence = out, check, sentence


def e4m3_values():
    """The 256 values of e4m3."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    magnitude = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9)
    magnitude[bits & 127 == 127] = np.nan
    return np.where(bits & 128, -magnitude, magnitude)


def bf16_bits(values):
    wide = np.asarray(values, np.float32).view(np.uint32)
    return ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)


def bf16_values(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Lab:
    """One door, called with arrays."""

    def __init__(self, door):
        device.library()
        self.door = ctypes.CDLL(str(door)).glm5_door
        self.door.restype = ctypes.c_char_p
        self.door.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]

    def _call(self, args, variant, sms, schedule, seed, out):
        with device.session(seed, schedule):
            wrong = self.door(ctypes.byref(args), variant, sms)
        if wrong is None:
            return Outcome(out.values.copy(), None, None)
        fault = device.last_fault()
        check = "driver" if b"refused the tensor map" in wrong else fault.check
        return Outcome(None, check, wrong.decode() + "\n" + str(fault))

    def fp8_gemm(self, variant, m, n, k, seed=0, schedule="fair", sms=132, per_row=False, data=1):
        """Returns (Outcome, float64 reference, bound on the error)."""
        random = np.random.default_rng(data)
        groups = -(-k // 128)
        kp, mp, np_ = -(-k // 16) * 16, -(-m // 4) * 4, -(-n // 4) * 4
        a_bits = (
            random.integers(0, 127, (m, kp), dtype=np.uint8) & 0xBF
            | random.integers(0, 2, (m, kp), dtype=np.uint8) << 7
        )
        b_bits = (
            random.integers(0, 127, (n, kp), dtype=np.uint8) & 0xBF
            | random.integers(0, 2, (n, kp), dtype=np.uint8) << 7
        )
        a_scales = random.uniform(0.5, 2, (groups, mp)).astype(np.float32)
        rows = np_ if per_row else -(-n // 128)
        b_scales = random.uniform(0.5, 2, (groups, rows) if per_row else (rows, groups)).astype(np.float32)
        arrays = [
            Array(a_bits, "a"),
            Array(a_scales, "a_scales"),
            Array(b_bits, "b"),
            Array(b_scales, "b_scales"),
            Array(np.full((m, n), 7.0, np.float32), "out", written=False),
        ]
        a, sa, b, sb, out = arrays
        args = Fp8GemmArgs(
            a=Tensor2(a.address, (m, k), (kp, 1)),
            a_scales=Tensor2(sa.address, (m, groups), (1, mp)),
            b=Tensor2(b.address, (n, k), (kp, 1)),
            b_scales=Tensor2(
                sb.address, (n, groups) if per_row else (rows, groups), (1, np_) if per_row else (groups, 1)
            ),
            b_scales_per_row=per_row,
            accumulate=False,
            out=Float2(out.address, 2, (m, n), (n, 1)),
        )
        outcome = self._call(args, variant, sms, schedule, seed, out)
        table = e4m3_values()
        reference, bound = np.zeros((m, n)), np.zeros((m, n))
        for g in range(groups):
            at = slice(128 * g, min(128 * g + 128, k))
            x, y = table[a_bits[:, at]], table[b_bits[:, at]]
            column = b_scales[g, :n] if per_row else np.repeat(b_scales[:, g], 128)[:n]
            scale = a_scales[g, :m, None].astype(np.float64) * column[None, :]
            reference += (x @ y.T) * scale
            bound += (abs(x) @ abs(y).T) * scale
        for array in arrays:
            array.free()
        return outcome, reference, bound * 2.0**-20

    def gemm(
        self,
        variant,
        m,
        n,
        k,
        seed=0,
        schedule="fair",
        sms=132,
        batch=1,
        a_by_rows=False,
        b_by_rows=False,
        data=1,
        pad=8,
    ):
        random = np.random.default_rng(data)
        x = bf16_bits(random.standard_normal((batch, m, k)))
        y = bf16_bits(random.standard_normal((batch, n, k)))

        def place(values, by_rows, name):
            stored = np.swapaxes(values, 1, 2) if by_rows else values
            width = -(-stored.shape[2] // pad) * pad
            array = Array(np.pad(stored, ((0, 0), (0, 0), (0, width - stored.shape[2]))), name)
            lines = stored.shape[1]
            strides = (lines * width, 1, width) if by_rows else (lines * width, width, 1)
            return array, Float3(array.address, 0, values.shape, strides)

        a, a_tensor = place(x, a_by_rows, "a")
        b, b_tensor = place(y, b_by_rows, "b")
        out = Array(np.full((batch, m, n), 7.0, np.float32), "out", written=False)
        args = GemmArgs(
            a=a_tensor, b=b_tensor, accumulate=False, out=Float3(out.address, 2, (batch, m, n), (m * n, n, 1))
        )
        outcome = self._call(args, variant, sms, schedule, seed, out)
        p, q = bf16_values(x).astype(np.float64), bf16_values(y).astype(np.float64)
        reference = p @ np.swapaxes(q, 1, 2)
        bound = (abs(p) @ np.swapaxes(abs(q), 1, 2)) * 2.0**-20
        for array in (a, b, out):
            array.free()
        return outcome, reference, bound
