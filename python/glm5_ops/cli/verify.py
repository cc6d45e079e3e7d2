"""``glm5-ops verify``: every op, or a stranger's function, against the reference and the promises of determinism."""

import argparse

import torch

from glm5_ops.cli._choice import (
    add_choices,
    allowed_isas,
    chosen_cases,
    chosen_functions,
    chosen_ops,
    reference_of,
    reproduction,
    require_device,
)
from glm5_ops.cli._emulated import add_argument, run_emulated
from glm5_ops.cli._exam import CHECKS, Result, Subject, examine
from glm5_ops.cli._output import Output, progress

SHOWN_FAILURES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choices(parser)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the edge cases (this is the default)")
    size.add_argument("--full", action="store_true", help="the edge cases and GLM-5's shapes")
    add_argument(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.emulated:
        return run_emulated(arguments)
    workloads = chosen_ops(arguments.op)
    cases = {
        op: chosen_cases(arguments, workload, workload.edges + workload.glm5 * arguments.full)
        for op, workload in workloads.items()
    }
    functions = chosen_functions(arguments, list(workloads))
    require_device(arguments.device)
    results: dict[str, list[Result]] = {}
    with allowed_isas(arguments.isa) as isas, progress(sum(map(len, cases.values()))) as bar:
        isas_apply = arguments.device == "cpu" and arguments.candidate is None
        for op, workload in workloads.items():
            subject = Subject(
                op, functions[op], reference_of(op), workload, arguments.device, tuple(isas if isas_apply else ())
            )
            results[op] = []
            for case in cases[op]:
                bar.step(f"{op} {case}")
                results[op].append(examine(subject, case))
    _report(arguments, output, results, isas[-1])
    return 0 if all(result.passed for of_op in results.values() for result in of_op) else 1


def _report(arguments: argparse.Namespace, output: Output, results: dict[str, list[Result]], isa: str) -> None:
    on_cpu = arguments.device == "cpu"
    where = f"cpu, {isa}, {torch.get_num_threads()} threads" if on_cpu else torch.cuda.get_device_name()
    promises = [check for check in CHECKS if check != "reference"]
    rows = [
        [op, str(len(of_op)), _error(of_op), *(_cell(check, of_op) for check in promises), _status(of_op)]
        for op, of_op in results.items()
    ]
    title = f"{arguments.candidate} in the place of {arguments.op[0]}, on {where}" if arguments.candidate else where
    output.table(["op", "cases", "error of allowed", *promises, "status"], rows, title)
    for op, of_op in results.items():
        _explain(arguments, output, op, of_op)
    document = {
        "command": "verify",
        "passed": all(result.passed for of_op in results.values() for result in of_op),
        "device": arguments.device,
        "isa": isa if on_cpu else "sm_90a",
        "threads": torch.get_num_threads(),
        "candidate": arguments.candidate,
        "ops": {op: [_as_json(arguments, op, result) for result in of_op] for op, of_op in results.items()},
    }
    output.document(document)


def _explain(arguments: argparse.Namespace, output: Output, op: str, of_op: list[Result]) -> None:
    failed = [result for result in of_op if not result.passed]
    for result in failed[:SHOWN_FAILURES]:
        for check, detail in result.failures.items():
            output.line(f"FAIL {op} {result.case}: {check}: {detail}")
        output.line(f"     again: {reproduction(arguments, op, result.case)}")
    if len(failed) > SHOWN_FAILURES:
        output.line(f"     and {len(failed) - SHOWN_FAILURES} more cases of {op}")
    if left_out := sum(bool(result.left_out) for result in of_op):
        output.line(f"{op}: the generic kernels were left out of {left_out} cases, which would take them minutes")


def _error(of_op: list[Result]) -> str:
    verdicts = [result.verdict for result in of_op if result.verdict is not None]
    if not verdicts:
        return "-"
    worst = max(verdicts, key=lambda v: v.error)
    return f"{worst.error:.3g} of {worst.allowed:g} {worst.unit}"


def _cell(check: str, of_op: list[Result]) -> str:
    if any(check in result.failures for result in of_op):
        return "NO"
    return "yes" if any(check in result.passes for result in of_op) else "-"


def _status(of_op: list[Result]) -> str:
    return "PASS" if all(result.passed for result in of_op) else "FAIL"


def _as_json(arguments: argparse.Namespace, op: str, result: Result) -> dict:
    found = {"case": str(result.case), "passed": result.passed, "passes": result.passes, "left_out": result.left_out}
    if result.verdict is not None:
        found |= {"error": result.verdict.error, "allowed": result.verdict.allowed, "unit": result.verdict.unit}
    return (
        found
        if result.passed
        else found | {"failures": result.failures, "again": reproduction(arguments, op, result.case)}
    )
