"""python -m tests.emulator [op ...]: every op's edge cases on the emulated device, judged as in the tests.

A line per case, with what it moved and computed beside what it cannot avoid; with --counters a table per launch.
Counts, never times (but for --speed, the emulator's own). With --trace or --break, what one warp does:
docs/emulator.md.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glm5_ops.cli._output import Output
from glm5_ops.workloads import Case, Workload, all_workloads

LARGEST_BYTES = 20_000_000  # that a case of --bench moves


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", help="ops to run; all where none is named")
    parser.add_argument("--case", action="append", default=[], help="a case of one op, e.g. m=140,n=260,k=400")
    parser.add_argument("--case-seed", type=int, help="of the cases' numbers (default: each case's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule `random`")
    parser.add_argument("--schedule", default="fair", choices=("fair", "random", "late", "lowest", "highest"))
    parser.add_argument("--flops", type=int, default=50_000_000, help="cases above this many operations are left out")
    parser.add_argument("--counters", action="store_true", help="print a table of counts for each launch")
    parser.add_argument("--bench", action="store_true", help="large cases; print a table of counts beside the floors")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--speed", action="store_true", help="how much the emulator executes in a second of one core")
    looking = parser.add_argument_group("one warp at work", "WARP is KERNEL:BLOCK:WARP: part of a kernel's name, the "
                                        "block's number or x,y,z, and the warp in the block")  # fmt: skip
    how = looking.add_mutually_exclusive_group()
    how.add_argument("--trace", metavar="WARP", help="print its instructions, with the registers they name")
    how.add_argument("--break", dest="lines", action="append", metavar="FILE:LINE",
                     help="print, each time the warp of --warp reaches the line, its instructions by lane")  # fmt: skip
    looking.add_argument("--warp", default=":0:0", help="whose stops --break prints; :0:0 where none is named")
    looking.add_argument("--dump", action="append", default=[], metavar="shared:OFFSET,rows,cols,dtype[,swizzle]",
                         help="at each stop, print this tile of shared memory")  # fmt: skip
    return parser


@contextmanager
def _looking(chosen: argparse.Namespace) -> Iterator[None]:
    from tests.emulator.debugging import Chosen, Printer, Tile, watch

    if chosen.trace is None and chosen.lines is None:
        yield
        return
    tiles = tuple(Tile.parse(text) for text in chosen.dump)
    printer = Printer(chosen.trace is not None, tiles)
    with watch(Chosen.parse(chosen.trace or chosen.warp), printer, tuple(chosen.lines or ())):
        yield


def _cases(chosen: argparse.Namespace, workloads: dict, output: Output) -> Iterator[tuple[str, Case]]:
    for op in chosen.ops or workloads:
        workload = workloads[op]
        if chosen.case:
            cases = [workload.case.parse(text) for text in chosen.case]
        elif chosen.bench:
            cases = _large_cases(workload, chosen.flops)
        else:
            cases = [case for case in workload.edges if case.flops() <= chosen.flops]
            for case in set(workload.edges) - set(cases):
                output.line(f"{op} {case}: left out, {case.flops()} operations")
        for case in cases:
            yield op, case if chosen.case_seed is None else dataclasses.replace(case, seed=chosen.case_seed)


def _large_cases(workload: Workload, flops: int) -> list[Case]:
    """GLM-5's shapes as far as the emulator takes seconds for them, else the greatest of the edge cases."""
    fits = lambda case: case.flops() <= flops and case.bytes_moved() <= LARGEST_BYTES  # noqa: E731
    large = [case for case in workload.glm5 if fits(case)]
    return large or [max(filter(fits, workload.edges), key=lambda case: (case.flops(), case.bytes_moved()))]


def _misuse(chosen: argparse.Namespace, workloads: dict) -> str | None:
    """What is wrong with the command line, in a sentence."""
    if unknown := set(chosen.ops) - set(workloads):
        return f"unknown ops: {', '.join(sorted(unknown))}; there are {', '.join(workloads)}"
    if chosen.case and len(chosen.ops) != 1:
        return "--case needs the one op whose case it is"
    if chosen.dump and not chosen.lines:
        return "--dump prints at stops: it needs --break FILE:LINE"
    return None


def _run(op: str, case: Case, workload: Workload, chosen: argparse.Namespace) -> dict:
    """What became of a case: the verdict, its counts beside the floor, and the counts of each launch."""
    import glm5_ops
    from glm5_ops import reference
    from tests import emulator
    from tests.emulator.counts import beside_floor
    from tests.emulator.harness_target import emulated

    record, inputs = {"op": op, "case": str(case), "device": "emulated-cuda"}, case.inputs("cpu")
    try:
        with emulator.counting() as launches, emulated(chosen.seed, chosen.schedule):
            got = workload.run(getattr(glm5_ops, op), inputs)
        verdict = workload.rule.judge(getattr(reference, op), workload.run, inputs, got)
    except (glm5_ops.Error, AssertionError) as problem:
        return record | {"passed": False, "verdict": str(problem)}
    return record | {"passed": verdict.passed, "verdict": str(verdict), "counts": beside_floor(case, launches),
                     "launches": launches}  # fmt: skip


def _show(record: dict, seconds: float, output: Output, with_launches: bool) -> None:
    from tests.emulator.counts import show_floor, show_launch

    beside = f"; {show_floor(record['counts'])}" if "counts" in record else ""
    word = "ok    " if record["passed"] else "FAILED"
    output.line(f"{word} {record['op']} {record['case']}: {record['verdict']}{beside} ({seconds:.1f} s here)")
    for launch in record.get("launches", ()) if with_launches else ():
        show_launch(output, launch)
    sys.stdout.flush()


def _show_bench(records: list[dict], output: Output) -> None:
    """A row per case that is right."""
    from tests.emulator.counts import show_ratio

    headers = ["op and case", "launches", "global bytes", "of floor", "operations", "of floor", "sectors", "wavefronts"]
    rows = []
    for record in records:
        if not record["passed"]:
            continue
        counts = record["counts"]
        ratios = [show_ratio(counts[f"{name}_ratio"]) for name in ("bytes", "operations", "sectors", "wavefronts")]
        rows.append([f"{record['op']} {record['case']}", str(len(record["launches"])), str(counts["global_bytes"]),
                     ratios[0], str(counts["operations"]), *ratios[1:]])  # fmt: skip
    if rows:
        output.line()
        title = "counted by the emulator, beside floors (-: there is none); sectors, wavefronts: of the fewest possible"
        output.table(headers, rows, title)


def _document(chosen: argparse.Namespace, records: list[dict]) -> dict:
    document = {"command": "bench" if chosen.bench else "verify", "emulated": True, "schedule": chosen.schedule,
                "seed": chosen.seed, "passed": all(record["passed"] for record in records)}  # fmt: skip
    if chosen.bench:
        return document | {"results": records}
    return document | {"ops": {op: [r for r in records if r["op"] == op] for op in {r["op"]: 0 for r in records}}}


def _refuse(chosen: argparse.Namespace, problem: str) -> int:
    print(problem, file=sys.stderr)
    if chosen.json:
        print(json.dumps({"command": "bench" if chosen.bench else "verify", "error": problem}))
    return 2


def main(arguments: list[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    from tests import emulator

    if reason := emulator.available():
        return _refuse(chosen, f"the emulator is not available: {reason}")
    if chosen.speed:
        from tests.emulator.speed import report

        report(Output(as_json=False))
        return 0
    torch.manual_seed(0)
    workloads, output, records = all_workloads(), Output(chosen.json), []
    if problem := _misuse(chosen, workloads):
        return _refuse(chosen, problem)
    try:
        with _looking(chosen):
            for op, case in _cases(chosen, workloads, output):
                begin = time.perf_counter()
                records.append(_run(op, case, workloads[op], chosen))
                _show(records[-1], time.perf_counter() - begin, output, chosen.counters)
    except ValueError as problem:  # of a case, a warp, a line or a tile
        return _refuse(chosen, str(problem))
    if chosen.bench:
        _show_bench(records, output)
    output.document(_document(chosen, records))
    return 0 if all(record["passed"] for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
