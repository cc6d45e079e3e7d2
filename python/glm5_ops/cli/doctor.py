"""``glm5-ops doctor``: what was built, what this machine can run, what is missing and the command that mends it."""

import argparse
import json
import platform
import signal
import subprocess
import sys
from pathlib import Path

import glm5_ops
from glm5_ops.cli import _findings
from glm5_ops.cli._output import Output
from glm5_ops.cli._repository import commit, machines_of, repository

PATIENCE_SECONDS = 120  # a first import of torch from a cold disk takes tens of seconds

OPS_COLUMNS = ("op", "cpu", "cuda", "backward")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Paste the output into your issue."


def run(arguments: argparse.Namespace, output: Output) -> int:
    found = probe(package_folder())
    found["cpu"] = processor()
    root = repository()
    findings = _findings.of(found, root)
    revision = commit()
    output.line(f"glm5_ops {glm5_ops.__version__}" + (f" (git {revision})" if revision else ""))
    facts = _facts(found)
    width = max(map(len, facts))
    for name, text in facts.items():
        output.line(f"  {name.ljust(width)}  {text}")
    output.line()
    rows = _ops(found)
    if rows:
        output.table(OPS_COLUMNS, rows, words=len(OPS_COLUMNS))
        output.line()
    for finding in findings:
        output.line(f"{finding.level}  {finding.cause}")
        output.line(f"      {finding.mend}")
    failed = any(finding.level == "FAIL" for finding in findings)
    if not findings:
        output.line("ok    nothing is missing")
    document = {
        "command": "doctor",
        "passed": not failed,
        "version": glm5_ops.__version__,
        "commit": revision,
        "facts": facts,
        "ops": [dict(zip(OPS_COLUMNS, row, strict=True)) for row in rows],
        "findings": [finding._asdict() for finding in findings],
        "found": found,
    }
    output.document(document)
    return 1 if failed else 0


def package_folder() -> Path:
    """The folder that holds the package glm5_ops."""
    return Path(glm5_ops.__file__).absolute().parent.parent


def probe(folder: Path) -> dict:
    """What a child process finds out, stage by stage; a stage that crashed it says so, later ones are absent."""
    text = Path(__file__).with_name("_probe.py").read_text()
    try:
        child = subprocess.run([sys.executable, "-c", text, str(folder)], capture_output=True, text=True, check=False,
                               timeout=PATIENCE_SECONDS)  # fmt: skip
        printed, code = child.stdout, child.returncode
    except subprocess.TimeoutExpired as error:
        printed, code = (error.stdout or b"").decode(), None
    found, stage = {}, "python"
    for line in printed.splitlines():
        try:
            said = json.loads(line)
            stage = said["stage"]
        except (ValueError, TypeError, KeyError):  # a library printed something of its own
            continue
        if "result" in said:
            found[stage] = said["result"]
    if code != 0:
        found[stage] = {"error": _death(code)}
    return found


def _death(code: int | None) -> str:
    if code is None:
        return f"it did not end within {PATIENCE_SECONDS} s"
    if code < 0:
        return f"the process crashed with {signal.Signals(-code).name}"
    return f"the process ended with code {code}"


def processor() -> dict:
    """Name, instruction sets and cores, as Linux tells them; elsewhere what Python knows."""
    found = {"name": platform.processor() or platform.machine(), "architecture": platform.machine(), "flags": []}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                found["name"] = value.strip()
            if key.strip() == "flags":
                found["flags"] = sorted(_findings.LEVEL_FLAGS & set(value.split()))
    except OSError:
        pass  # not Linux
    found["cores"] = _findings.usable_cores()
    return found


def _facts(found: dict) -> dict[str, str]:
    torch, native, gpu, cpu = (found.get(stage, {}) for stage in ("torch", "native", "gpu", "cpu"))
    facts = {"python": f"{platform.python_version()} on {platform.platform()}"}
    facts["torch"] = torch.get("version", "missing") + (f", CUDA {torch['cuda']}" if torch.get("cuda") else "")
    if "compiler" in native:
        cuda = (
            f"CUDA {native['cuda_version']}, CUTLASS {native['cutlass_version']}" if native["with_cuda"] else "no CUDA"
        )
        facts["build"] = f"{cuda}, {native['compiler']}, {native['build_type']}"
    else:
        facts["build"] = "the extension cannot be imported"
    facts["cpu"] = f"{cpu['name']}, {cpu['cores']} cores" + (
        f", {native['detected_isa']} used" if "isas" in native else ""
    )
    if cpu["architecture"] == "x86_64":
        facts["levels"] = _findings.levels(cpu["flags"])
    if "threads" in torch and "threads" in native:
        facts["threads"] = f"torch {torch['threads']}, kernels {native['threads']}"
    facts["gpu"] = _gpu(gpu)
    if "exchange_api" in torch:
        facts["binding"] = (
            "DLPack exchange API" if torch["exchange_api"] else "tensor attributes (about 2 us more a call)"
        )
    return facts


def _gpu(gpu: dict) -> str:
    if not gpu.get("driver"):
        return "no driver: CPU only"
    names = ", ".join("{} sm_{}{}".format(one["name"], *one["architecture"]) for one in gpu["gpus"])
    return f"{names or 'none'}; driver for CUDA {gpu['cuda'][0]}.{gpu['cuda'][1]}"


def _ops(found: dict) -> list[list[str]]:
    ops, native = found.get("ops", {}), found.get("native", {})
    if "error" in ops or "isas" not in native:
        return []
    rows = []
    for name, op in ops.items():
        machines = machines_of(op["stem"], native["kernel_files"])
        cpu = "?" if machines is None else " ".join(m for m in machines if m != "sm_90a")
        built = native["with_cuda"] and (machines is None or "sm_90a" in machines)
        rows.append([name, cpu, "sm_90a" if built else "-", "yes" if op["backward"] else "-"])
    return rows
