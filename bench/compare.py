"""Two JSON files of ``glm5-ops bench``: what changed by more than the noise.

A line counts as changed when both hold: the Mann-Whitney test gives its samples less than a hundredth of a chance to
come from one distribution, and the medians differ by more than the noise of the pair. That noise is what the baselines
moved by in the same case, since their code is the same in both files, and at least 2 %.
"""

import math

from glm5_ops.bench.run import OURS

LARGEST_CHANCE = 0.01
SMALLEST_CHANGE = 0.02


def mann_whitney(a: list[float], b: list[float]) -> float:
    """The chance of samples so far apart if there is no difference: two-sided, normal approximation, ties corrected."""
    pooled = sorted([(x, 0) for x in a] + [(x, 1) for x in b])
    size, rank_sum, tie_term, i = len(pooled), 0.0, 0.0, 0
    while i < size:
        j = i
        while j < size and pooled[j][0] == pooled[i][0]:
            j += 1
        rank = (i + 1 + j) / 2  # ties share their mean rank
        rank_sum += rank * sum(1 for k in range(i, j) if pooled[k][1] == 0)
        tie_term += (j - i) ** 3 - (j - i)
        i = j
    n, m = len(a), len(b)
    u = rank_sum - n * (n + 1) / 2
    variance = n * m / 12 * (size + 1 - tie_term / (size * (size - 1)))
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def compare(old: dict, new: dict) -> list[dict]:
    """A line for every case that both have: our times, their ratio, the noise; ``faster``, ``slower`` or ``same``."""
    before = {_key(record): record["times"] for record in old["results"] if "times" in record}
    lines = []
    for record in new["results"]:
        if "times" in record and _key(record) in before:
            lines.append({"op": record["op"], "case": record["case"], **_line(before[_key(record)], record["times"])})
    return lines


def _key(record: dict) -> tuple:
    return record["op"], record["case"], record["device"], record["isa"]


def _line(old: dict, new: dict) -> dict:
    ratio = new[OURS]["median_us"] / old[OURS]["median_us"]
    shared = [name for name in new if name != OURS and name in old]
    noise = max([SMALLEST_CHANGE, *(abs(new[n]["median_us"] / old[n]["median_us"] - 1) for n in shared)])
    chance = mann_whitney(old[OURS]["samples_us"], new[OURS]["samples_us"])
    changed = chance < LARGEST_CHANCE and abs(ratio - 1) > noise
    return {
        "old_us": old[OURS]["median_us"],
        "new_us": new[OURS]["median_us"],
        "ratio": ratio,
        "noise": noise,
        "chance": chance,
        "verdict": ("slower" if ratio > 1 else "faster") if changed else "same",
    }
