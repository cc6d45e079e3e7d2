"""What was asked for: ops, cases, a device, an instruction set, a candidate; each mistake is a sentence."""

import argparse
import dataclasses
import difflib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch

import glm5_ops
from glm5_ops import reference
from glm5_ops.cli._output import UsageError
from glm5_ops.workloads import MODULES, Case, Workload, all_workloads

ISAS = ("generic", "avx2", "avx512", "amx")


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The arguments that verify and bench share."""
    parser.add_argument("op", nargs="*", help="the ops; none: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--isa", choices=ISAS, help="use no instruction set above this one on the CPU")
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="this case instead of the op's own, such as m=16,n=4096,k=6144 (may be repeated)",
    )
    parser.add_argument(
        "--candidate",
        metavar="MODULE:FUNCTION",
        help="judge this function, with the op's own parameters, in the op's place",
    )
    parser.add_argument("--seed", type=int, help="of the cases' numbers (default: each case's own)")  # fmt: skip


def chosen_ops(names: Sequence[str], among: Sequence[str] | None = None) -> dict[str, Workload]:
    """The workloads of the named ops, or of all.

    Args:
        names: as given on the command line.
        among: what `names` may be, where not every op will do.
    """
    known = all_workloads()
    among = list(known) if among is None else list(among)
    for name in names:
        if name not in among:
            near = difflib.get_close_matches(name, among, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"there is no {name!r} here; {hint}There are: {', '.join(among)}")
    return {name: known[name] for name in among if name in names or not names}


def chosen_cases(arguments: argparse.Namespace, workload: Workload, own: Sequence[Case]) -> list[Case]:
    """The cases of ``--case``, or the op's own, with ``--seed``."""
    if arguments.case and len(arguments.op) != 1:
        raise UsageError("--case belongs to one op; name it, as in `verify gemm --case m=5,n=6,k=7`")
    try:
        cases = [workload.case.parse(text) for text in arguments.case] or list(own)
    except ValueError as error:
        raise UsageError(f"--case: {error}") from None
    return cases if arguments.seed is None else [dataclasses.replace(case, seed=arguments.seed) for case in cases]


def inputs_of(case: Case, device: str) -> dict:
    """The case's inputs; a case that cannot be made is a sentence."""
    try:
        return case.inputs(device)
    except KeyError as error:
        fields = [f.name for f in dataclasses.fields(case) if getattr(case, f.name) == error.args[0]]
        raise UsageError(f"--case: {fields[0] if fields else 'a field'} cannot be {error.args[0]!r}") from None
    except (RuntimeError, ValueError, MemoryError) as error:
        raise UsageError(f"the inputs of {case} cannot be made: {str(error).splitlines()[0]}") from None


def chosen_functions(arguments: argparse.Namespace, ops: Sequence[str]) -> dict[str, Callable]:
    """The op of each name, or the candidate in its place."""
    if arguments.candidate is None:
        return {name: getattr(glm5_ops, name) for name in ops}
    if len(arguments.op) != 1:
        raise UsageError("--candidate stands in for one op; name it, as in `verify gemm --candidate my_kernels:gemm`")
    return {arguments.op[0]: _candidate(arguments.candidate)}


def _candidate(text: str) -> Callable:
    module_name, colon, function_name = text.partition(":")
    if not (module_name and colon and function_name):
        raise UsageError(f"--candidate must be package.module:function; got {text!r}")
    if os.getcwd() not in sys.path:  # `python -m` looks here by itself, the installed script does not
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except Exception as error:  # a stranger's module may fail in any way
        raise UsageError(f"--candidate: importing {module_name} failed: {type(error).__name__}: {error}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"--candidate: {module_name} has no function {function_name!r}")
    return function


def require_device(device: str) -> None:
    """Refuse a device that this machine or this build does not have."""
    if device == "cpu":
        return
    mend = "`glm5-ops doctor` names the mend"
    if not torch.cuda.is_available():
        raise UsageError(f"--device cuda needs a GPU that torch can use; torch {torch.__version__} finds none; {mend}")
    if not native().with_cuda:
        raise UsageError(f"--device cuda needs a build with CUDA kernels; this one has none; {mend}")
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) != (9, 0):
        raise UsageError(
            f"--device cuda needs an sm_90 GPU (H100, H200); this one is sm_{major}{minor}, "
            "where only glm5_ops.reference runs"
        )


def native():
    """The extension; where it is missing, an ImportError with the cause."""
    return import_module("glm5_ops._native")


@contextmanager
def allowed_isas(limit: str | None) -> Iterator[list[str]]:
    """The instruction sets that may run here, ascending; inside, none above them is used.

    Raises:
        UsageError: `limit` is above what this machine has.
    """
    names, best, before = native().isa_names(), native().detected_isa(), native().current_isa()
    if limit is not None and names.index(limit) > best:
        raise UsageError(f"--isa {limit}: this machine has {names[best]} at most")
    top = before if limit is None else names.index(limit)
    native().limit_isa(top)
    try:
        yield names[: top + 1]
    finally:
        native().limit_isa(before)


def stem_of(op: str) -> str:
    """The folder and the file name of an op: gemm_into lives with gemm."""
    return next(stem for stem in MODULES if op in import_module(f"glm5_ops.workloads.{stem}").WORKLOADS)


def contract_of(op: str):
    """The op's own contract, or that of its stem."""
    module = import_module(f"glm5_ops.ops.{stem_of(op)}")
    own = [value for value in vars(module).values() if isinstance(value, type(module.CONTRACT)) and value.op == op]
    return own[0] if own else module.CONTRACT


def has_backward(op: str) -> bool:
    """What writes to its arguments has no gradient, whatever its stem promises."""
    return contract_of(op).differentiable and not getattr(glm5_ops, op)._schema.is_mutable


def reference_of(op: str) -> Callable:
    return getattr(reference, op)


def reproduction(arguments: argparse.Namespace, op: str, case: Case) -> str:
    """The command that examines one case by itself."""
    words = ["verify", op, "--case", str(case), "--device", arguments.device]
    words += ["--isa", arguments.isa] if arguments.isa else []
    words += ["--candidate", arguments.candidate] if arguments.candidate else []
    return f"{_program()} {shlex.join(words)}"


def _program() -> str:
    """How this program is called from a shell: by its script where that is this installation's."""
    script = shutil.which("glm5-ops")
    if script and Path(script).parent == Path(sys.executable).parent:
        return "glm5-ops"
    return f"{shlex.quote(sys.executable)} -m glm5_ops"
