"""``glm5-ops describe``: everything of one op in ten seconds."""

import argparse
import inspect

import glm5_ops
from glm5_ops.cli._choice import chosen_ops, contract_of, has_backward, native, stem_of
from glm5_ops.cli._output import Output
from glm5_ops.cli._repository import files_of, machines_of
from glm5_ops.workloads import Workload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op", nargs="*", help="the ops; none: a list of all")


def run(arguments: argparse.Namespace, output: Output) -> int:
    described = [_describe(op, workload) for op, workload in chosen_ops(arguments.op).items()]
    if arguments.op:
        for one in described:
            _print(one, output)
    else:
        output.table(
            ["op", "what it does"], [[one["op"], one["docstring"].splitlines()[0]] for one in described], words=2
        )
    output.document({"command": "describe", "ops": described})
    return 0


def _describe(op: str, workload: Workload) -> dict:
    operator, stem = getattr(glm5_ops, op), stem_of(op)
    return {
        "op": op,
        "signature": f"{op}{inspect.signature(operator)}",
        "docstring": inspect.cleandoc(operator.__doc__),
        "contract": {name: line.text for name, line in contract_of(op).lines.items()},
        "backward": has_backward(op),
        "runs_on": _runs_on(stem),
        "rule": workload.rule.why,
        "edges": [str(case) for case in workload.edges],
        "glm5": [str(case) for case in workload.glm5],
        "files": files_of(stem),
    }


def _runs_on(stem: str) -> str:
    extension = native()
    machines = machines_of(stem, getattr(extension, "kernel_files", None))
    names, level = extension.isa_names(), extension.current_isa()
    usable = [isa for isa in names[: level + 1] if machines is None or isa in machines]
    return f"cpu ({usable[-1] if usable else 'no kernel'})" + ", cuda (sm_90a)" * extension.with_cuda


def _print(one: dict, output: Output) -> None:
    output.line(one["signature"].replace("torch.Tensor", "Tensor"))
    output.line()
    output.line(one["docstring"])
    output.line("\nContract:")
    width = max(map(len, one["contract"]))
    for name, text in one["contract"].items():
        output.line(f"  {name.ljust(width)}  {text}")
    output.line(f"\nRuns here on: {one['runs_on']}")
    output.line(f"Gradient: {'yes' if one['backward'] else 'no'}")
    output.line(f"Judged by: {one['rule']}")
    output.line(f"Cases: {len(one['edges'])} edges, and GLM-5's:")
    for case in one["glm5"]:
        output.line(f"  {case}")
    if one["files"]:
        output.line("Files:")
    for file in one["files"]:
        output.line(f"  {file}")
    output.line()
