"""The command line, ``glm5-ops`` or ``python -m glm5_ops``.

It ends with 0: good, 1: something failed, 2: asked wrongly.
"""

import argparse
import json
import os
import sys
from importlib import import_module

from glm5_ops import __version__
from glm5_ops.cli._output import Output, UsageError

COMMANDS = {
    "doctor": "what was built, what this machine can run, what is missing and the command that mends it",
    "verify": "judge every op, or your own function, against its reference",
    "bench": "time ops beside their baselines; nothing is timed that does not verify",
    "describe": "an op's signature, contract, cases and files",
    "demo": "choose keys of a text with the indexer; train a small language model in FP8, beside the same in bf16",
}


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if word in COMMANDS), "")
    try:
        return _run(argv)
    except UsageError as error:
        return _refuse(command, argv, str(error), 2)
    except ImportError as error:  # torch or the extension is missing; the message says what to install
        return _refuse(command, argv, str(error), 1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _run(argv: list[str]) -> int:
    parser = _Parser(prog="glm5-ops", description=import_module("glm5_ops").__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"glm5_ops {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".", allow_abbrev=False)
        command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        if name in argv:  # the others would import torch, which doctor must do without
            import_module(f"glm5_ops.cli.{name}").add_arguments(command)
    arguments = parser.parse_args(argv)
    arguments.argv = argv
    if arguments.command is None:
        parser.print_help()
        return 2
    return import_module(f"glm5_ops.cli.{arguments.command}").run(arguments, Output(arguments.json))


def _refuse(command: str, argv: list[str], sentence: str, code: int) -> int:
    print(f"glm5-ops {command}: {sentence}".replace(" :", ":"), file=sys.stderr)
    if "--json" in argv:
        print(json.dumps({"command": command, "error": sentence}))
    return code
