"""``glm5-ops bench``: verify, then time beside the baselines, or count in the emulator; compare two runs; plot."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from glm5_ops.bench import roofline
from glm5_ops.bench.compare import compare
from glm5_ops.bench.machine import machine
from glm5_ops.bench.ops import benchmarks
from glm5_ops.bench.plot import plot
from glm5_ops.bench.run import OURS, measure
from glm5_ops.bench.timing import BusyClock, CpuClock, CudaClock, kept_memory
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
from glm5_ops.cli._exam import Subject, examine
from glm5_ops.cli._output import Output, UsageError, as_json, progress
from glm5_ops.cli._repository import commit

SECONDS, QUICK_SECONDS = 2.0, 0.25
NOTABLE_DRIFT = 0.08
# What holds torch to an instruction set; it reads these once, when it starts.
TORCH_HELD_TO = {
    "generic": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "amx": {},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choices(parser)
    parser.add_argument("--quick", action="store_true", help="few cases, short runs")
    parser.add_argument("--json-file", type=Path, metavar="FILE", help="store the results, with every sample")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the times (needs matplotlib)")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("OLD", "NEW"),
        help="measure nothing; say what changed between two stored results",
    )
    add_argument(parser)
    parser.add_argument(
        "--busy-time",
        action="store_true",
        help="on a CPU that others use too: count the time that the process computes, per thread",
    )
    parser.add_argument("--held", action="store_true", help=argparse.SUPPRESS)  # fmt: skip


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.emulated:
        return run_emulated(arguments, "--bench")
    if arguments.compare:
        return _compare(*(_load(file) for file in arguments.compare), output)
    files = [file for file in (arguments.json_file, arguments.plot) if file is not None]
    for file in files:
        if not file.absolute().parent.is_dir():
            raise UsageError(f"{file} cannot be written: there is no folder {file.absolute().parent}")
    workloads = chosen_ops(arguments.op, among=list(benchmarks()))
    cases = {
        op: chosen_cases(arguments, workload, benchmarks()[op].QUICK if arguments.quick else benchmarks()[op].CASES)
        for op, workload in workloads.items()
    }
    functions = chosen_functions(arguments, list(workloads))
    require_device(arguments.device)
    with allowed_isas(arguments.isa) as isas:
        if (arguments.isa or arguments.busy_time) and not arguments.held:
            return _in_a_child(arguments)
        with kept_memory():
            document = _measure(arguments, output, cases, functions, workloads, isas[-1])
    if arguments.json_file:
        arguments.json_file.write_text(json.dumps(as_json(document), indent=1))
    if arguments.plot:
        _plot(document, arguments.plot)
    output.document(document)
    return 0 if document["passed"] else 1


def _in_a_child(arguments: argparse.Namespace) -> int:
    """The same command in a child process, where torch is held to the instruction set as well, or waits idly."""
    command = [sys.executable, "-m", "glm5_ops", *arguments.argv, "--held"]
    environment = os.environ | TORCH_HELD_TO.get(arguments.isa, {})
    if arguments.busy_time:
        environment["OMP_WAIT_POLICY"] = "passive"
    return subprocess.run(command, env=environment, check=False).returncode


def _measure(arguments, output: Output, cases: dict, functions: dict, workloads: dict, isa: str) -> dict:
    device, seconds = arguments.device, QUICK_SECONDS if arguments.quick else SECONDS
    clock = CudaClock() if device == "cuda" else BusyClock() if arguments.busy_time else CpuClock()
    document = {"command": "bench", "passed": True, "machine": machine(device) | {"commit": commit()},
                "clock": type(clock).__name__, "candidate": arguments.candidate,
                "roofline": roofline.measure(device, clock), "results": []}  # fmt: skip
    _headline(document, output)
    with progress(sum(map(len, cases.values()))) as bar:
        for op, workload in workloads.items():
            subject = Subject(op, functions[op], reference_of(op), workload, device, ())
            records = []
            for case in cases[op]:
                bar.step(f"{op} {case}")
                record = {"op": op, "isa": isa if device == "cpu" else "sm_90a", "case": str(case), "device": device}
                exam = examine(subject, case, thorough=False)
                if exam.passed:
                    baselines = benchmarks()[op].BASELINES
                    record |= measure(functions[op], baselines, case, device, document["roofline"], seconds, clock)
                else:
                    record["refused"] = exam.failures
                    document["passed"] = False
                records.append(record)
            _table(op, records, output, arguments)
            document["results"] += records
    return document


def _headline(document: dict, output: Output) -> None:
    about, roof = document["machine"], document["roofline"]
    where = about["gpu"]["name"] if "gpu" in about else f"{about['cpu']}, {about['isa']}, {about['threads']} threads"
    rates = ", ".join(f"{rate:.3g} TFLOP/s {name}" for name, rate in roof["tflop_s"].items())
    output.line(f"{where}; torch {about['torch']} ({about['torch_cpu']}); commit {about['commit'] or 'unknown'}")
    output.line(f"roofline, by torch: copy {roof['copy_gb_s']:.3g} GB/s, matmul {rates}")


def _table(op: str, records: list[dict], output: Output, arguments: argparse.Namespace) -> None:
    timed = [record for record in records if "times" in record]
    names = list(dict.fromkeys(name for record in timed for name in record["times"] if name != OURS))
    who = arguments.candidate or "ours"
    rows = [_row(record, names) for record in timed]
    if rows:
        output.line()
        headers = [op, f"{who} us", "p20-p80", "rate", "of roof", *(f"vs {name}" for name in names)]
        output.table(headers, rows)
    for record in timed:
        if abs(record["drift"]) > NOTABLE_DRIFT:
            output.line(f"  ! {record['case']}: times moved by {record['drift']:+.0%} during the run; run it again")
    for record in records:
        for check, detail in record.get("refused", {}).items():
            output.line(f"  FAIL {record['case']} is not timed, because it fails verify: {check}: {detail}")
            output.line(f"       again: {reproduction(arguments, op, record['case'])}")


def _row(record: dict, names: list[str]) -> list[str]:
    ours = record["times"][OURS]
    median = ours["median_us"]
    rate = (
        f"{record['flops'] / median / 1e3:.1f} GFLOP/s"
        if record["flops"]
        else f"{record['bytes'] / median / 1e3:.2f} GB/s"
    )
    times = record["times"]
    ratios = [f"{times[name]['median_us'] / median:.2f}x" if name in times else "-" for name in names]
    return [record["case"], f"{median:.1f}", f"{ours['p20_us']:.1f}-{ours['p80_us']:.1f}", rate,
            f"{record['floor_us'] / median:.0%}", *ratios]  # fmt: skip


def _load(file: Path) -> dict:
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as a result of `glm5-ops bench --json-file`: {error}") from None
    if not isinstance(document, dict) or document.get("command") != "bench":
        raise UsageError(f"{file} is not a result of `glm5-ops bench --json-file`")
    return document


def _compare(old: dict, new: dict, output: Output) -> int:
    lines = compare(old, new)
    if not lines:
        raise UsageError("the two files have no case in common")
    if old["machine"]["cpu"] != new["machine"]["cpu"] or old["machine"]["threads"] != new["machine"]["threads"]:
        output.line("! the two files come from different machines or thread counts")
    changed = [line for line in lines if line["verdict"] != "same"]
    if changed:
        output.table(["op and case", "old us", "new us", "change", "noise", "verdict"], [
            [f"{c['op']} {c['case']}", f"{c['old_us']:.1f}", f"{c['new_us']:.1f}", f"{c['ratio'] - 1:+.1%}",
             f"{c['noise']:.1%}", c["verdict"]] for c in changed])  # fmt: skip
    output.line(f"{len(lines)} cases in both files, {len(changed)} changed by more than the noise")
    output.document({"command": "bench --compare", "lines": lines})
    return 1 if any(line["verdict"] == "slower" for line in changed) else 0


def _plot(document: dict, file: Path) -> None:
    if not any("times" in record for record in document["results"]):
        return
    try:
        plot(document, file)
    except ImportError:
        print("glm5-ops bench: --plot needs matplotlib: pip install matplotlib", file=sys.stderr)
    except ValueError as error:  # an ending that matplotlib does not know
        raise UsageError(f"--plot {file}: {error}") from None
