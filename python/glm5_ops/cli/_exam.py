"""The exam of one case: the reference's verdict, and the promises that hold to the bit."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from glm5_ops.cli._choice import inputs_of, native
from glm5_ops.workloads import Case, Workload
from glm5_ops.workloads._compare import Verdict, same_bits

# What each check proves; `verify` prints the names as columns.
CHECKS = {
    "reference": "agrees with the reference by the op's rule",
    "inputs": "leaves its inputs as they were",
    "rerun": "gives the same bits three times",
    "threads": "gives the same bits with one thread as with many",
    "batch": "gives a row the same bits whichever rows are with it",
    "isas": "gives the same bits with every instruction set of this machine",
}
# More work than this takes the generic kernels minutes, so larger cases leave them out.
LARGEST_GENERIC_FLOPS = 2e9


@dataclass(frozen=True)
class Subject:
    """Who is examined: an op or a candidate, and where it runs."""

    op: str
    function: Callable
    reference: Callable
    workload: Workload
    device: str
    isas: tuple[str, ...]  # ascending; empty for a candidate and on CUDA, where they mean nothing


@dataclass
class Result:
    """One case: what each check said; a check that does not apply is absent."""

    case: Case
    verdict: Verdict | None = None
    failures: dict[str, str] = field(default_factory=dict)
    passes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    def note(self, check: str, verdict: Verdict, where: str = "") -> None:
        if not verdict.passed:
            self.failures.setdefault(check, f"{where}{verdict.detail or verdict}")
        elif check not in self.passes:
            self.passes.append(check)


def examine(subject: Subject, case: Case, thorough: bool = True) -> Result:
    """Run one case through the checks: all of them, or, not `thorough`, the reference's verdict and one re-run."""
    result = Result(case)
    inputs = inputs_of(case, subject.device)
    untouched = {n: v.clone() for n, v in inputs.items() if isinstance(v, torch.Tensor)}
    try:
        got = _copies(subject.workload.run(subject.function, inputs))
        result.verdict = subject.workload.rule.judge(subject.reference, subject.workload.run, inputs, got)
        result.note("reference", result.verdict)
        for _ in range(2 if thorough else 1):
            _again(result, "rerun", subject, inputs, got)
        if thorough and result.passed:
            _promises(result, subject, inputs, got)
    except Exception as error:  # whatever a candidate raises is its result
        result.failures.setdefault("reference", f"{type(error).__name__}: {str(error).strip()}")
    for name, before in untouched.items():
        result.note("inputs", same_bits(inputs[name], before), f"{name} was written to: ")
    return result


def _promises(result: Result, subject: Subject, inputs: dict, got: tuple) -> None:
    if subject.device == "cpu":
        _threads(result, subject, inputs, got)
    _batch(result, subject, inputs, got)
    _isas(result, subject, inputs, got)


def _again(result: Result, check: str, subject: Subject, inputs: dict, expected: tuple, where: str = "") -> None:
    """One more run must give the expected bits."""
    for got, bits in zip(subject.workload.run(subject.function, inputs), expected, strict=True):
        result.note(check, same_bits(got, bits), where)


def _threads(result: Result, subject: Subject, inputs: dict, got: tuple) -> None:
    usual = torch.get_num_threads()
    try:
        for threads in (1, 3) if usual < 3 else (1, usual - 1):
            torch.set_num_threads(threads)
            _again(result, "threads", subject, inputs, got, f"{threads} threads instead of {usual}: ")
    finally:
        torch.set_num_threads(usual)


def _batch(result: Result, subject: Subject, inputs: dict, got: tuple) -> None:
    """Some of the rows by themselves: the first, a ragged piece, and one from the middle to the end."""
    if not subject.workload.rows:
        return
    rows = inputs[subject.workload.rows[0]].shape[subject.workload.row_dim]
    step = 1 if subject.device == "cpu" else 16  # TMA wants addresses that are multiples of 16 bytes
    third, middle = rows // 3 // step * step, rows // 2 // step * step
    for begin, end in {(0, 1), (third, min(third + 5, rows)), (middle, rows)}:
        if not 0 <= begin < end <= rows or end - begin == rows:
            continue
        alone = subject.workload.cut_rows(inputs, begin, end)
        expected = tuple(subject.workload.rows_of(out, begin, end) for out in got)
        _again(result, "batch", subject, alone, expected, f"rows {begin}:{end} of {rows} alone: ")


def _isas(result: Result, subject: Subject, inputs: dict, got: tuple) -> None:
    top = len(subject.isas) - 1
    try:
        for level, isa in enumerate(subject.isas[:top]):
            if isa == "generic" and result.case.flops() > LARGEST_GENERIC_FLOPS:
                result.left_out.append("isas: generic (too much work)")
                continue
            native().limit_isa(level)
            _again(result, "isas", subject, inputs, got, f"{isa} instead of {subject.isas[top]}: ")
    finally:
        if top >= 0:
            native().limit_isa(top)


def _copies(outputs: tuple) -> tuple:
    """So that a function that returns the same memory again is not compared with itself."""
    return tuple(out.clone() if isinstance(out, torch.Tensor) else out for out in outputs)
