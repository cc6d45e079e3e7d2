"""Small PTX programs for tests: one instruction over arrays, or a body with a few arguments."""

import ctypes

import numpy as np
import torch

from tests.emulator.device import DeviceTensor, Module, to_device

HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"


def kernel(
    body: str, parameters: tuple[str, ...] = ("u64 out",), *, name: str = "k", directives: str = "", outside: str = ""
) -> str:
    """A module with one kernel; `parameters` are "type name"."""
    declared = ", ".join(f".param .{p.split()[0]} {p.split()[1]}" for p in parameters)
    registers = "".join(
        f".reg .{kind} %{prefix}<64>; "
        for kind, prefix in (("pred", "p"), ("b16", "rs"), ("b32", "r"), ("b64", "rd"), ("f32", "f"), ("f64", "fd"))
    )
    return f"{HEAD}{outside}\n.visible .entry {name}({declared})\n{directives}\n{{\n{registers}\n{body}\nret;\n}}\n"


def _register(name: str, width: int) -> str:
    return {1: "%rs", 2: "%rs", 4: "%r", 8: "%rd"}[width] + {"d": "40", "a": "41", "b": "42", "c": "43"}[name]


def elementwise(instruction: str, out: np.dtype, *sources: np.ndarray) -> np.ndarray:
    """`instruction` with {d}, {a}, {b}, {c} for registers, applied to every element of the sources."""
    out, count = np.dtype(out), len(sources[0])
    assert all(len(s) == count for s in sources) and count % 32 == 0
    names = "abc"[: len(sources)]
    lines = ["mov.u32 %r1, %tid.x;", "mov.u32 %r2, %ctaid.x;", "mad.lo.s32 %r1, %r2, 32, %r1;"]
    for i, (name, source) in enumerate(zip(names, sources, strict=True)):
        width = source.dtype.itemsize
        lines += [f"ld.param.u64 %rd{i + 1}, [{name}];", f"mul.wide.u32 %rd{i + 5}, %r1, {width};",
                  f"add.s64 %rd{i + 1}, %rd{i + 1}, %rd{i + 5};",
                  f"ld.global.b{8 * width} {_register(name, width)}, [%rd{i + 1}];"]  # fmt: skip
    registers = {name: _register(name, s.dtype.itemsize) for name, s in zip(names, sources, strict=True)}
    lines += [instruction.format(d=_register("d", out.itemsize), **registers)]
    lines += ["ld.param.u64 %rd10, [out];", f"mul.wide.u32 %rd11, %r1, {out.itemsize};", "add.s64 %rd10, %rd10, %rd11;",
              f"st.global.b{8 * out.itemsize} [%rd10], {_register('d', out.itemsize)};"]  # fmt: skip
    module = Module(kernel("\n".join(lines), ("u64 out", *(f"u64 {n}" for n in names))))
    result = array_on_device(np.zeros(count, out), is_output=True)
    held = [array_on_device(s) for s in sources]
    module.launch("k", [result, *held], blocks=count // 32, threads=32)
    values = back(result, out)
    for each in (result, *held):
        each.free()
    return values


def array_on_device(values: np.ndarray, *, is_output: bool = False) -> DeviceTensor:
    return to_device(
        torch.from_numpy(np.ascontiguousarray(values).view(np.uint8).copy()),
        "out" if is_output else "in",
        is_output=is_output,
    )


def back(copy: DeviceTensor, dtype: np.dtype) -> np.ndarray:
    return copy.tensor.numpy().copy().view(dtype)


def run(
    body: str,
    out: np.ndarray,
    *,
    threads=32,
    blocks=1,
    cluster=1,
    shared_bytes=0,
    arguments=(),
    parameters=(),
    **options,
) -> np.ndarray:
    """Run a body with parameter `out` (and more); the final contents of `out`, which begins as given."""
    module = Module(kernel(body, ("u64 out", *parameters), **options))
    result = array_on_device(out)
    try:
        module.launch(
            "k", [result, *arguments], threads=threads, blocks=blocks, cluster=cluster, shared_bytes=shared_bytes
        )
        return back(result, out.dtype)
    finally:
        result.free()


def u32(value: int) -> ctypes.c_uint32:
    return ctypes.c_uint32(value)
