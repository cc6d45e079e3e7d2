"""The shape of a workload: a Case makes inputs and knows its cost; a Workload is an op's cases and its rule."""

import dataclasses
from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import Rule


@dataclass(frozen=True)
class Case:
    """The base of every op's case: a few numbers that fix a problem."""

    seed: int = dataclasses.field(default=0, kw_only=True)

    def inputs(self, device: str | torch.device = "cpu") -> dict:
        """The op's arguments by name: made on the CPU from the seed, so that every device gets the same numbers."""
        made = self.make(torch.Generator().manual_seed(self.seed))
        return {name: _moved(value, device) for name, value in made.items()}

    def make(self, generator: torch.Generator) -> dict:
        raise TypeError(f"{type(self).__name__} must define make(generator)")

    def flops(self) -> int:
        """Floating-point operations that the op cannot avoid."""
        return 0

    def bytes_moved(self) -> int:
        """Bytes that the op cannot avoid: each input read once, each output written once."""
        raise TypeError(f"{type(self).__name__} must define bytes_moved()")

    def __str__(self) -> str:
        """What ``--case`` takes: the fields that differ from their defaults."""
        shown = [
            f"{f.name}={getattr(self, f.name)}"
            for f in sorted(dataclasses.fields(self), key=lambda f: f.kw_only)
            if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        ]
        return ",".join(shown)

    @classmethod
    def parse(cls, text: str) -> "Case":
        """A case from ``name=value,...``.

        Raises:
            ValueError: an unknown name or a value of the wrong kind, in a sentence.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in fields:
                raise ValueError(f"a case of {cls.__name__} has {', '.join(fields)}; got {name!r}")
            values[name] = _parsed(fields[name], value)
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
        if missing:
            raise ValueError(f"a case of {cls.__name__} also needs {', '.join(missing)}; got {text!r}")
        return cls(**values)


def _parsed(field: dataclasses.Field, text: str) -> object:
    by_name = {"int": int, "float": float, "bool": bool}
    kind = field.type if isinstance(field.type, type) else by_name.get(field.type, str)
    if kind is bool:
        if text not in ("True", "False"):
            raise ValueError(f"{field.name} must be True or False; got {text!r}")
        return text == "True"
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{field.name} must be of type {kind.__name__}; got {text!r}") from None
    if kind is int and value < 0:
        raise ValueError(f"{field.name} must be 0 or more; got {text}")
    return value


def _moved(value: object, device: str | torch.device) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    if value.device.type == torch.device(device).type:
        return value
    # .to() would make a column-major tensor row-major
    moved = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return moved.copy_(value)


@dataclass(frozen=True)
class Workload:
    """An op's cases and how its results are judged."""

    case: type[Case]
    edges: tuple[Case, ...]  # corners: empty, one, ragged, adversarial
    glm5: tuple[Case, ...]  # the shapes that matter
    rule: Rule
    rows: tuple[str, ...] = ()  # inputs that may be cut along their rows together; the output's rows keep their bits
    row_dim: int = -2  # which dimension of these inputs and of the outputs is the rows: 0 or -2
    writes: str | None = None  # the input that the op writes to, where it returns nothing

    def cut_rows(self, inputs: dict, begin: int, end: int) -> dict:
        """The same problem on some of the rows."""
        return {n: v if v is None or n not in self.rows else self.rows_of(v, begin, end) for n, v in inputs.items()}

    def rows_of(self, tensor: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        return tensor[begin:end] if self.row_dim == 0 else tensor[..., begin:end, :]

    def run(self, function, inputs: dict) -> tuple[torch.Tensor, ...]:
        """Call an op, or a stand-in of it, on a copy of what it writes; always a tuple of outputs."""
        inputs = dict(inputs)
        if self.writes is not None:
            written = inputs[self.writes].clone(memory_format=torch.preserve_format)
            inputs[self.writes] = written
            function(**inputs)
            return (written,)
        result = function(**inputs)
        return result if isinstance(result, tuple) else (result,)
