"""python -m tests.emulator [op ...]: every op's edge cases on the emulated device, judged as in the tests.

A line per case, then counts per kernel: instructions by class (warps/lanes) and bytes by memory space.
Counts, never times.
"""

import argparse
import sys
import time

import torch


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", help="ops to run; all where none is named")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedule", default="fair", choices=("fair", "random", "late", "lowest", "highest"))
    parser.add_argument("--flops", type=int, default=50_000_000, help="cases above this many operations are left out")
    parser.add_argument("--counters", action="store_true", help="print the counts of each kernel")
    chosen = parser.parse_args(arguments)

    from tests import emulator

    if reason := emulator.available():
        print(f"the emulator is not available: {reason}", file=sys.stderr)
        return 2
    import glm5_ops
    from glm5_ops import reference
    from glm5_ops.workloads import all_workloads
    from tests.emulator.harness_target import emulated

    torch.manual_seed(0)
    workloads = all_workloads()
    unknown = set(chosen.ops) - set(workloads)
    if unknown:
        print(f"unknown ops: {', '.join(sorted(unknown))}; there are {', '.join(workloads)}", file=sys.stderr)
        return 2
    failed = 0
    for op in chosen.ops or workloads:
        workload = workloads[op]
        for case in workload.edges:
            if case.flops() > chosen.flops:
                print(f"{op} {case}: left out, {case.flops()} operations")
                continue
            inputs, begin = case.inputs("cpu"), time.perf_counter()
            try:
                with emulated(chosen.seed, chosen.schedule):
                    got = workload.run(getattr(glm5_ops, op), inputs)
                verdict = workload.rule.judge(getattr(reference, op), workload.run, inputs, got)
                passed, what = verdict.passed, str(verdict)
            except (glm5_ops.Error, AssertionError) as problem:
                passed, what = False, str(problem)
            failed += not passed
            seconds = time.perf_counter() - begin
            print(f"{'ok    ' if passed else 'FAILED'} {op} {case}: {what} ({seconds:.1f} s here)", flush=True)
    if chosen.counters:
        for kernel, fields in emulator.counters().items():
            print(kernel, *(f"  {name} {value}" for name, value in fields.items()), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
