"""Counted launches: beside what a case cannot avoid, and as tables. Counts only, never times."""

from collections.abc import Iterable

from glm5_ops.cli._output import Output
from glm5_ops.workloads import Case

SECTOR_BYTES = 32
GLOBAL_PATHS = ("global loads", "global stores", "global atomics", "cp.async", "bulk loads", "bulk stores")
SHARED_PATHS = ("shared loads", "shared stores", "ldmatrix", "stmatrix")


def beside_floor(case: Case, launches: Iterable[dict]) -> dict:
    """What the launches moved and computed, and how many times the floor of the case that is.

    ``global_bytes``: whole sectors that requests and copies took from or brought to the L2 cache; more than the floor's
    each input once, each output once, where tiles are read again. ``operations``: two per multiply-add of the matrix
    instructions; where there are none, of ``fma``. A ratio is None where the floor is 0.
    """
    launches = list(launches)
    moved = SECTOR_BYTES * sum(_sum(launches, path, "taken") for path in GLOBAL_PATHS)
    adds = [each["multiply_adds"] for each in launches]
    by_matrix = sum(count for each in adds for name, count in each.items() if name != "fma")
    operations = 2 * (by_matrix or sum(each.get("fma", 0) for each in adds))
    return {
        "global_bytes": moved,
        "floor_bytes": case.bytes_moved(),
        "bytes_ratio": _ratio(moved, case.bytes_moved()),
        "operations": operations,
        "floor_operations": case.flops(),
        "operations_ratio": _ratio(operations, case.flops()),
        "sectors_ratio": _excess(launches, GLOBAL_PATHS),
        "wavefronts_ratio": _excess(launches, SHARED_PATHS),
    }


def _sum(launches: list[dict], path: str, what: str) -> int:
    return sum(each["memory"].get(path, {}).get(what, 0) for each in launches)


def _ratio(count: int, floor: int) -> float | None:
    return count / floor if floor else None


def _excess(launches: list[dict], paths: Iterable[str]) -> float | None:
    """Sectors or wavefronts that were taken, over the fewest that would do."""
    ideal = sum(_sum(launches, path, "ideal") for path in paths)
    return _ratio(sum(_sum(launches, path, "taken") for path in paths), ideal)


def show_ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def show_floor(counts: dict) -> str:
    """A few words for the line of a case."""
    said = []
    for name, nothing in (("bytes", "it need not move any"), ("operations", "its case states no operations")):
        ratio = counts[f"{name}_ratio"]
        said.append(nothing if ratio is None else f"{show_ratio(ratio)} the floor's {name}")
    return ", ".join(said)


def show_launch(output: Output, launch: dict) -> None:
    """One launch as a table."""
    shape = ", ".join(f"{name} {'x'.join(map(str, launch[name]))}" for name in ("blocks", "threads", "cluster"))
    output.line()
    output.table(
        ["", "requests", "lanes or bytes", "took", "at least", "excess"],
        [*_instructions(launch), *_arithmetic(launch), *_memory(launch)],
        f"{launch['kernel']}: {shape}, {launch['shared_bytes']} bytes of shared memory",
    )


def _instructions(launch: dict) -> list[list[str]]:
    return [
        [f"{name} instructions", str(count["warps"]), str(count["lanes"]), "", "", ""]
        for name, count in launch["instructions"].items()
    ]


def _arithmetic(launch: dict) -> list[list[str]]:
    return [[f"{name} multiply-adds", str(count), "", "", "", ""] for name, count in launch["multiply_adds"].items()]


def _memory(launch: dict) -> list[list[str]]:
    rows = []
    for name, count in launch["memory"].items():
        row = [name, str(count["requests"]), str(count["bytes"])]
        if count["ideal"]:
            unit = "wavefronts" if name in SHARED_PATHS else "sectors"
            row += [f"{count['taken']} {unit}", str(count["ideal"]), f"{count['taken'] / count['ideal'] - 1:+.0%}"]
        rows.append([*row, *[""] * (6 - len(row))])
    if loads := launch["memory"].get("bulk loads"):
        times = f"{launch['delivered_bytes'] / loads['bytes']:.2f}x of what was read" if loads["bytes"] else ""
        rows.append(["bulk loads, delivered", "", str(launch["delivered_bytes"]), times, "", ""])
    return rows
