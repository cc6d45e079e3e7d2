"""The times of a run as bars, one panel per op."""

from pathlib import Path


def plot(document: dict, file: Path) -> None:
    """Write the figure; its kind follows the file's ending.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [record for record in document["results"] if "times" in record]
    ops = list(dict.fromkeys(record["op"] for record in results))
    heights = [sum(len(record["times"]) + 1 for record in results if record["op"] == op) for op in ops]
    figure, panels = pyplot.subplots(
        len(ops), 1, figsize=(9, 1 + 0.22 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for panel, op in zip(panels[:, 0], ops, strict=True):
        _panel(panel, op, [record for record in results if record["op"] == op])
    machine = document["machine"]
    figure.suptitle(f"{machine.get('gpu', {}).get('name', machine['cpu'])}, {machine['threads']} threads", fontsize=9)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _panel(panel, op: str, records: list[dict]) -> None:
    contenders = list(dict.fromkeys(name for record in records for name in record["times"]))
    step = len(contenders) + 1
    for i, name in enumerate(contenders):
        rows = [r for r, record in enumerate(records) if name in record["times"]]
        times = [records[r]["times"][name] for r in rows]
        medians = [time["median_us"] for time in times]
        spread = [
            [median - time["p20_us"] for median, time in zip(medians, times, strict=True)],
            [time["p80_us"] - median for median, time in zip(medians, times, strict=True)],
        ]
        panel.barh([r * step + i for r in rows], medians, xerr=spread, label=name)
    panel.set_yticks([r * step + (step - 2) / 2 for r in range(len(records))], [r["case"] for r in records], fontsize=7)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlabel("microseconds: median, with the 20th and 80th percentile")
    panel.set_title(op, loc="left")
    panel.legend(fontsize=7)
