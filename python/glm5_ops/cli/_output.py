"""What the commands print: rich tables on a terminal, aligned text elsewhere, or one JSON document."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

try:
    import rich.box
    import rich.console
    import rich.progress
    import rich.table
    import rich.text
except ImportError:
    rich = None

STYLES = {"ok": "green", "PASS": "green", "yes": "green", "WARN": "yellow", "FAIL": "bold red", "NO": "bold red"}


class UsageError(Exception):
    """Asked wrongly; the message is the sentence to show."""


class Output:
    """One command's standard output."""

    def __init__(self, as_json: bool):
        self.as_json = as_json
        self._console = rich.console.Console() if rich is not None and sys.stdout.isatty() and not as_json else None

    def line(self, text: str = "") -> None:
        if not self.as_json:
            print(text)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", words: int = 1) -> None:
        """The first `words` columns are text; the others are figures and stand to the right."""
        if self.as_json:
            return
        lines = [list(headers), *(list(row) for row in rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
        if self._console is not None:
            # wider than the terminal: better whole and wrapped by it than squeezed
            width = max(self._console.width, sum(widths) + 2 * len(widths))
            rich.console.Console(width=width).print(_rich_table(headers, rows, title, words))
            return
        if title:
            print(title)
        for line in lines:
            cells = [
                cell.ljust(w) if i < words else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ]
            print("  " + "  ".join(cells).rstrip())

    def document(self, value: dict) -> None:
        if self.as_json:
            print(json.dumps(as_json(value), indent=1))


def as_json(value: object) -> object:
    """JSON has no infinity and no NaN: they become words."""
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str, words: int):
    table = rich.table.Table(title=title or None, title_justify="left", box=rich.box.SIMPLE, padding=0, pad_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i >= words else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(rich.text.Text(cell, style=STYLES.get(cell, "")) for cell in row))
    return table


class _Silent:
    def step(self, text: str) -> None:
        pass


class _Bar:
    def __init__(self, bar, task):
        self._bar, self._task, self._started = bar, task, False

    def step(self, text: str) -> None:
        """Say what begins now; what was said before is done."""
        self._bar.update(self._task, description=text, advance=int(self._started))
        self._started = True


class _Counter:
    """Without rich: one line that rewrites itself."""

    def __init__(self, total: int):
        self._total, self._done = total, 0

    def step(self, text: str) -> None:
        self._done += 1
        print(f"\r\x1b[K[{self._done}/{self._total}] {text}", end="", file=sys.stderr, flush=True)


@contextmanager
def progress(total: int) -> Iterator[_Silent | _Bar | _Counter]:
    """A progress bar on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        yield _Silent()
    elif rich is None:
        yield _Counter(total)
        print("\r\x1b[K", end="", file=sys.stderr)
    else:
        columns = (
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.description}"),
        )
        with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as bar:
            yield _Bar(bar, bar.add_task("", total=total))
