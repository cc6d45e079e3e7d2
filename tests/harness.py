"""One harness for every op: a case meets a target, and the result meets the reference.

Targets are every instruction set of this machine, the greater ones through an interpreter where one is installed, CUDA
if present, and the CUDA kernels on an emulator wherever they can be compiled. What cannot run here is named, with its
reason, in the header of the test run.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from unittest import mock

import pytest
import torch
import torch.testing._internal.optests.generate_tests

import glm5_ops
from glm5_ops import _native, reference
from glm5_ops.workloads import Case, all_workloads
from glm5_ops.workloads._compare import Verdict, bits
from tests import emulator, interpreter
from tests.emulator.harness_target import emulated

ISAS = tuple(_native.isa_names())
WORKLOADS = all_workloads()
# An interpreter executes some ten million instructions a second: cases above this are left to real machines.
INTERPRETED_FLOPS, INTERPRETED_BYTES = 8_000_000, 400_000
EMULATED_FLOPS, EMULATED_BYTES = 40_000_000, 600_000


@dataclass(frozen=True)
class Target:
    """A machine to run an op on."""

    name: str
    device: str = "cpu"
    isa: str = ISAS[-1]
    interpreted: bool = False
    emulated: bool = False

    def __str__(self) -> str:
        return self.name

    def takes(self, case: Case) -> bool:
        if self.interpreted:
            return case.flops() <= INTERPRETED_FLOPS and case.bytes_moved() <= INTERPRETED_BYTES
        return not self.emulated or (case.flops() <= EMULATED_FLOPS and case.bytes_moved() <= EMULATED_BYTES)

    @property
    def native(self) -> ModuleType:
        """The extension that serves this target."""
        return emulator.native() if self.emulated else _native

    @contextmanager
    def active(self) -> Iterator[None]:
        """Ops called inside run on this target."""
        with ExitStack() as stack:
            if self.device == "cpu":
                _native.limit_isa(ISAS.index(self.isa))
                stack.callback(_native.limit_isa, len(ISAS) - 1)
            if self.emulated:
                stack.enter_context(emulated())
            if self.interpreted:
                stack.enter_context(interpreter.interpreted(self.isa, _native))
            yield


def _targets() -> tuple[list[Target], list[str]]:
    targets, absent = [], []
    detected = _native.detected_isa()
    for level, isa in enumerate(ISAS):
        if level <= detected:
            targets.append(Target(f"cpu-{isa}", isa=isa))
        elif reason := interpreter.available():
            absent.append(f"cpu-{isa}: this processor lacks it, and the interpreter cannot stand in: {reason}")
        else:
            targets.append(Target(f"cpu-{isa}-interpreted", isa=isa, interpreted=True))
    if reason := emulator.available():
        absent.append(f"emulated-cuda: {reason}")
    else:
        targets.append(Target("emulated-cuda", emulated=True))
    if not _native.with_cuda:
        absent.append("cuda: this build has no CUDA kernels")
    elif not torch.cuda.is_available():
        absent.append("cuda: no GPU")
    else:
        targets.append(Target("cuda", device="cuda"))
    return targets, absent


TARGETS, ABSENT = _targets()
CPUS = tuple(t for t in TARGETS if t.name.startswith("cpu-"))
# Beside the portable code, whose bits they must give.
VECTOR_CPUS = tuple(t for t in CPUS if t.isa != "generic")
GPUS = tuple(t for t in TARGETS if t.device == "cuda" or t.emulated)


def over(cases: Iterable[Case], targets: Iterable[Target] = tuple(TARGETS)) -> pytest.MarkDecorator:
    """Parametrise a test by case and target; the target is active while the test runs (conftest.py)."""
    pairs = [pytest.param(c, t, id=f"{t}-{c}") for t in targets for c in cases if t.takes(c)]
    return pytest.mark.parametrize(("case", "target"), pairs)


def run(op: str, inputs: dict) -> tuple[torch.Tensor, ...]:
    return WORKLOADS[op].run(getattr(glm5_ops, op), inputs)


def check_matches_reference(op: str, case: Case, target: Target) -> None:
    workload, inputs = WORKLOADS[op], case.inputs(target.device)
    verdict = workload.rule.judge(getattr(reference, op), workload.run, inputs, run(op, inputs))
    assert verdict.passed, f"{op} on {target}, case {case}: {verdict}"


def check_same_bits(name: str, got: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> None:
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape, f"{name}: {list(g.shape)} instead of {list(e.shape)}"
        differing = int((bits(g) != bits(e)).sum())
        assert differing == 0, f"{name}: {differing} of {g.numel()} elements differ"


def check_repeats(op: str, case: Case, target: Target, times: int = 3) -> None:
    inputs = case.inputs(target.device)
    first = run(op, inputs)
    for _ in range(times - 1):
        check_same_bits(f"{op} run again", run(op, inputs), first)
    untouched = case.inputs(target.device)
    tensors = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]
    check_same_bits(f"inputs of {op} after it ran", [inputs[n] for n in tensors], [untouched[n] for n in tensors])


def check_thread_count_does_not_matter(op: str, case: Case, target: Target) -> None:
    inputs, threads = case.inputs(target.device), torch.get_num_threads()
    expected = run(op, inputs)
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            check_same_bits(f"{op} with {count} threads", run(op, inputs), expected)
    finally:
        torch.set_num_threads(threads)


def check_rows_do_not_depend_on_the_batch(op: str, case: Case, target: Target) -> None:
    workload, inputs = WORKLOADS[op], case.inputs(target.device)
    whole = run(op, inputs)
    rows = inputs[workload.rows[0]].shape[workload.row_dim]
    # CUDA's copy engine wants operands that start at multiples of 16 bytes: four scales, or 16 rows of anything
    step = 16 if target in GPUS else 1
    last, middle = (rows - 1) // step * step, rows // 3 // step * step
    for begin, end in ((0, 1), (last, rows), (middle, rows // 2 + 1), (step, rows)):
        part = run(op, workload.cut_rows(inputs, begin, end))
        check_same_bits(f"{op} on rows {begin} to {end}", part, [workload.rows_of(w, begin, end) for w in whole])


def check_same_bits_as_generic(op: str, case: Case, target: Target) -> None:
    """Every instruction set follows the same summation tree. `target` is active; generic must be entered anew."""
    inputs = case.inputs("cpu")
    got = run(op, inputs)
    with ExitStack() as stack:
        if target.interpreted:
            _native.interpret_isa(0, 0)
        stack.enter_context(Target("cpu-generic", isa="generic").active())
        expected = run(op, inputs)
    check_same_bits(f"{op} on {target} and on cpu-generic", got, expected)


def check_same_bits_on_a_gpu_and_generic(op: str, case: Case, target: Target) -> None:
    """For ops that promise the same bits on every machine. `target` is active; the portable code is entered anew."""
    got = run(op, case.inputs(target.device))
    module = sys.modules[f"glm5_ops.ops.{stem_of(op)}"]
    with mock.patch.object(module, "_native", _native), Target("cpu-generic", isa="generic").active():
        expected = run(op, case.inputs("cpu"))
    check_same_bits(f"{op} on {target} and on cpu-generic", got, expected)


def stem_of(op: str) -> str:
    """The module that an op stands in."""
    modules = [m for m in glm5_ops.workloads.MODULES if op in sys.modules[f"glm5_ops.workloads.{m}"].WORKLOADS]
    return modules[0]


def check_registration(op: str, *args: object) -> None:
    """torch's own check of an operator: schema, autograd, fake tensors, dynamic shapes."""
    utils = torch.testing._internal.optests.generate_tests.ALL_TEST_UTILS
    # torch 2.13 cannot compare e4m3 inputs before and after a call ("mul_cpu_reduced_float" not implemented)
    fp8 = any(isinstance(a, torch.Tensor) and a.dtype == torch.float8_e4m3fn for a in args)
    chosen = tuple(u for u in utils if not (fp8 and u == "test_schema"))
    torch.library.opcheck(getattr(torch.ops.glm5_ops, op).default, args, test_utils=chosen)


def message_of(function: Callable, *args, **kwargs) -> str:
    """The sentence with which a call is refused."""
    with pytest.raises((ValueError, glm5_ops.Error)) as raised:
        function(*args, **kwargs)
    return str(raised.value)


__all__ = ["ABSENT", "TARGETS", "WORKLOADS", "Target", "Verdict", "message_of", "over", "run"]
