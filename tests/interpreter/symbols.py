"""Names for addresses in this process, for messages: `moe_combine+0x1c in _native.so`."""

import bisect
import os
import subprocess


def name_of(address: int) -> str:
    mapped = _file_at(address)
    if mapped is None:
        return f"{address:#x}"
    path, base = mapped
    name = _symbol(path, address - base)
    return f"{name} in {os.path.basename(path)}" if name else f"{os.path.basename(path)}+{address - base:#x}"


def _file_at(address: int) -> tuple[str, int] | None:
    """The mapped file around `address` and where its first byte lies."""
    starts: dict[str, int] = {}
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, _, offset, _, _, *path = line.split(maxsplit=5)
            begin, end = (int(word, 16) for word in addresses.split("-"))
            if not path or not path[0].startswith("/"):
                continue
            file = path[0].rstrip("\n")
            if int(offset, 16) == 0:
                starts[file] = begin
            if begin <= address < end:
                return (file, starts[file]) if file in starts else None
    return None


def _symbol(path: str, offset: int) -> str | None:
    for dynamic in ([], ["-D"]):
        try:
            listing = subprocess.run(
                ["nm", "-C", "--defined-only", *dynamic, path], capture_output=True, text=True, timeout=60
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
        functions = sorted(
            (int(words[0], 16), words[2])
            for words in (line.split(maxsplit=2) for line in listing.splitlines())
            if len(words) == 3 and words[1] in "tTwWiV"
        )
        at = bisect.bisect_right(functions, (offset, "\U0010ffff")) - 1
        if at >= 0:
            start, name = functions[at]
            return name if start == offset else f"{name}+{offset - start:#x}"
    return None
