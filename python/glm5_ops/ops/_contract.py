"""A contract: one line per tensor, in one notation, checked before anything is allocated.

``bf16|f32[tokens, ceil(hidden/128)] columns`` reads: element types, dimensions, layout. A dimension is a name, bound by
the first tensor that has it; ``ceil(name/128)``, a name divided and rounded up; or a number. ``?`` at the end: may be
None.

Layouts:

====================  ============================================================================
(none)                row-major, contiguous
``strided``           unit stride along the last dimension, any stride elsewhere
``columns``           column-major; the stride of a column is a multiple of 4 (16 bytes of f32)
``either``            unit stride along one of the last two dimensions
``any``               any strides
====================  ============================================================================
"""

import re

import torch
from torch import Tensor

DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LAYOUTS = {
    "": "row-major",
    "strided": "with unit stride along the last dimension",
    "columns": "column-major with a column stride that is a multiple of 4",
    "either": "with unit stride along one of the last two dimensions",
    "any": "",
}
_LINE = re.compile(r"(?P<dtypes>[\w|]+)\[(?P<dims>[^\]]*)\]\s*(?P<layout>\w*)(?P<optional>\??)$")
_CEIL = re.compile(r"ceil\((\w+)/(\d+)\)$")
_LARGEST = 2**31 - 1


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


class TensorLine:
    """One line of a contract, parsed."""

    def __init__(self, name: str, line: str):
        match = _LINE.match(line)
        if match is None or match["layout"] not in LAYOUTS:
            raise ValueError(f"{name}: {line!r} is not a contract line")
        self.name, self.text = name, line
        self.dtypes = tuple(DTYPES[d] for d in match["dtypes"].split("|"))
        self.dims = tuple(d.strip() for d in match["dims"].split(","))
        self.layout, self.optional = match["layout"], bool(match["optional"])
        # (name, divisor) for what depends on a name; (None, number) for a constant.
        self.terms = tuple(self._term(d) for d in self.dims)

    @staticmethod
    def _term(dim: str) -> tuple:
        if dim.isdigit():
            return None, int(dim)
        ceil = _CEIL.match(dim)
        return (ceil[1], int(ceil[2])) if ceil else (dim, 1)

    def fits(self, tensor: Tensor, lengths: dict) -> bool:
        """Whether the tensor is as the line says; binds the dimensions it is the first to name."""
        if tensor.dtype not in self.dtypes or tensor.dim() != len(self.terms):
            return False
        for size, (name, divisor) in zip(tensor.shape, self.terms, strict=True):
            if size > _LARGEST:
                return False
            if name is None:
                if size != divisor:
                    return False
            elif name not in lengths and divisor == 1:
                lengths[name] = size
            elif size != ceil_div(lengths[name], divisor):
                return False
        return self._layout_fits(tensor)

    def _layout_fits(self, tensor: Tensor) -> bool:
        layout, shape, stride = self.layout, tensor.shape, tensor.stride()
        if layout == "":
            return tensor.is_contiguous()
        if layout == "any":
            return True
        if layout == "strided":
            return shape[-1] <= 1 or stride[-1] == 1
        if layout == "either":
            return shape[-1] <= 1 or stride[-1] == 1 or shape[-2] <= 1 or stride[-2] == 1
        rows, columns = shape
        if rows == 0 or columns == 0:
            return True
        return (rows == 1 or stride[0] == 1) and (columns == 1 or (stride[1] % 4 == 0 and stride[1] >= rows))

    def expectation(self, lengths: dict) -> str:
        words = f"{'|'.join(NAMES[d] for d in self.dtypes)}[{', '.join(self.dims)}]"
        if LAYOUTS[self.layout]:
            words += f", {LAYOUTS[self.layout]}"
        known = [
            f"{dim} is {ceil_div(lengths[name], divisor)}"
            for dim, (name, divisor) in zip(self.dims, self.terms, strict=True)
            if name in lengths
        ]
        return words + (f", where {' and '.join(known)}" if known else "")


def describe_value(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{value.dtype}{list(value.shape)} with strides {list(value.stride())} on {value.device}"


class Contract:
    """The tensors of an op by name. ``check`` the inputs, make the outputs with ``empty``."""

    def __init__(self, op: str, /, *, differentiable: bool = False, **lines: str):
        self.op, self.differentiable = op, differentiable
        self.lines = {name: TensorLine(name, line) for name, line in lines.items()}

    def check(self, **tensors: Tensor | None) -> dict:
        """Check every given tensor against its line; return the lengths of the named dimensions.

        Raises:
            ValueError: a sentence with the op, the argument, what was expected and what came.
        """
        lengths: dict = {}
        device = None
        for name, tensor in tensors.items():
            line = self.lines[name]
            if tensor is None and line.optional:
                continue
            before = dict(lengths)
            if not isinstance(tensor, Tensor) or not line.fits(tensor, lengths):
                self._refuse(name, tensor, line.expectation(before))
            if device is None:
                first, device = name, tensor.device
            elif tensor.device != device:
                raise ValueError(
                    f"{self.op}: all tensors must be on one device; "
                    f"{first} is on {device}, {name} is on {tensor.device}"
                )
            if tensor.requires_grad and not self.differentiable and torch.is_grad_enabled():
                raise ValueError(
                    f"{self.op}: {name} requires grad, but {self.op} has no gradient; "
                    "detach it or call under torch.no_grad()"
                )
        return lengths

    def _refuse(self, name: str, tensor: object, expectation: str) -> None:
        if isinstance(tensor, Tensor) and any(size > _LARGEST for size in tensor.shape):
            expectation += f", no dimension above {_LARGEST}"
        raise ValueError(f"{self.op}: {name} must be {expectation}; got {describe_value(tensor)}")

    def require(self, holds: bool, name: str, expected: str, got: object) -> None:
        """For what a line cannot say, such as a choice among words."""
        if not holds:
            raise ValueError(f"{self.op}: {name} must be {expected}; got {describe_value(got)}")

    def empty(self, name: str, lengths: dict, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor as its line says, on the device of `like`."""
        line = self.lines[name]
        shape = [d if n is None else ceil_div(lengths[n], d) for n, d in line.terms]
        dtype = line.dtypes[0] if dtype is None else dtype
        if line.layout == "columns":
            rows, _ = shape
            return torch.empty_strided(shape, (1, 4 * ceil_div(rows, 4)), dtype=dtype, device=like.device)
        return torch.empty(shape, dtype=dtype, device=like.device)
