"""``--emulated``: the CUDA kernels on the repository's emulator, in a child process. It counts, and times nothing."""

import argparse
import subprocess
import sys

from glm5_ops.cli._choice import chosen_cases, chosen_ops
from glm5_ops.cli._output import UsageError
from glm5_ops.cli._repository import repository

# What says where to run, or what to do with times.
OUT_OF_PLACE = ("device", "isa", "candidate", "quick", "full", "json_file", "plot", "compare")


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--emulated", action="store_true", help="run the CUDA kernels in the repository's emulator, and count"
    )


def run_emulated(arguments: argparse.Namespace, *words: str) -> int:
    """The exit code of the child, which prints for itself.

    Args:
        arguments: ops, ``--case``, ``--seed`` and ``--json`` are handed on.
        words: more, for the child.
    """
    root = repository()
    if root is None or not (root / "tests" / "emulator" / "__main__.py").is_file():
        raise UsageError(
            "--emulated runs the CUDA kernels in the repository's emulator; tests/emulator/__main__.py is not here"
        )
    defaults = {"device": "cpu"}
    for name in OUT_OF_PLACE:
        if getattr(arguments, name, None) not in (None, False, defaults.get(name)):
            raise UsageError(
                f"--emulated goes with ops, --case, --seed and --json only, not with --{name.replace('_', '-')}"
            )
    for workload in chosen_ops(arguments.op).values():
        chosen_cases(arguments, workload, ())  # a mistake is a sentence before the child starts
    command = [sys.executable, "-m", "tests.emulator", *arguments.op, *words]
    for case in arguments.case:
        command += ["--case", case]
    command += [] if arguments.seed is None else ["--case-seed", str(arguments.seed)]
    return subprocess.run(command + ["--json"] * arguments.json, cwd=root, check=False).returncode
