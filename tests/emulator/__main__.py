"""python -m tests.emulator [op ...]: every op's edge cases on the emulated device, judged as in the tests.

A line per case, then counts per kernel: instructions by class (warps/lanes) and bytes by memory space.
Counts, never times. With --trace or --break, what one warp does: docs/emulator.md.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", help="ops to run; all where none is named")
    parser.add_argument("--case", help="one case of one op, e.g. m=140,n=260,k=400")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedule", default="fair", choices=("fair", "random", "late", "lowest", "highest"))
    parser.add_argument("--flops", type=int, default=50_000_000, help="cases above this many operations are left out")
    parser.add_argument("--counters", action="store_true", help="print the counts of each kernel")
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


def _cases(chosen: argparse.Namespace, workloads: dict) -> Iterator[tuple[str, object]]:
    for op in chosen.ops or workloads:
        if chosen.case is not None:
            yield op, workloads[op].case.parse(chosen.case)
            continue
        for case in workloads[op].edges:
            if case.flops() <= chosen.flops:
                yield op, case
            else:
                print(f"{op} {case}: left out, {case.flops()} operations")


def _misuse(chosen: argparse.Namespace, workloads: dict) -> str | None:
    """What is wrong with the command line, in a sentence."""
    if unknown := set(chosen.ops) - set(workloads):
        return f"unknown ops: {', '.join(sorted(unknown))}; there are {', '.join(workloads)}"
    if chosen.case is not None and len(chosen.ops) != 1:
        return "--case needs the one op whose case it is"
    if chosen.dump and not chosen.lines:
        return "--dump prints at stops: it needs --break FILE:LINE"
    return None


def _run(op: str, case: object, workload: object, chosen: argparse.Namespace) -> tuple[bool, str]:
    import glm5_ops
    from glm5_ops import reference
    from tests.emulator.harness_target import emulated

    inputs = case.inputs("cpu")
    try:
        with emulated(chosen.seed, chosen.schedule):
            got = workload.run(getattr(glm5_ops, op), inputs)
        verdict = workload.rule.judge(getattr(reference, op), workload.run, inputs, got)
        return verdict.passed, str(verdict)
    except (glm5_ops.Error, AssertionError) as problem:
        return False, str(problem)


def main(arguments: list[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    from tests import emulator

    if reason := emulator.available():
        print(f"the emulator is not available: {reason}", file=sys.stderr)
        return 2
    from glm5_ops.workloads import all_workloads

    torch.manual_seed(0)
    workloads = all_workloads()
    if problem := _misuse(chosen, workloads):
        print(problem, file=sys.stderr)
        return 2
    failed = 0
    try:
        with _looking(chosen):
            for op, case in _cases(chosen, workloads):
                begin = time.perf_counter()
                passed, what = _run(op, case, workloads[op], chosen)
                failed += not passed
                seconds = time.perf_counter() - begin
                print(f"{'ok    ' if passed else 'FAILED'} {op} {case}: {what} ({seconds:.1f} s here)", flush=True)
    except ValueError as problem:  # of a case, a warp, a line or a tile
        print(problem, file=sys.stderr)
        return 2
    if chosen.counters:
        for kernel, fields in emulator.counters().items():
            print(kernel, *(f"  {name} {value}" for name, value in fields.items()), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
