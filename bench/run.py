"""One case of one op, timed beside its baselines."""

from collections.abc import Callable

from glm5_ops.bench.roofline import floor_us
from glm5_ops.bench.timing import Prepared, bound, drift, input_sets, interleave, quantile

from glm5_ops.workloads import Case

OURS = "ours"


def measure(
    function: Callable,
    baselines: dict[str, Callable | Prepared],
    case: Case,
    device: str,
    roof: dict,
    seconds: float,
    clock: Callable[[Callable], float],
) -> dict:
    """The record of one case, as it stands in the JSON file.

    Args:
        function: the op, or a candidate.
        baselines: by name, as in the op's ``BASELINES``.
        case: what to run.
        device: ``cpu`` or ``cuda``.
        roof: from ``roofline.measure``.
        seconds: the timed work to aim for.
        clock: one of ``timing``.
    """
    inputs = case.inputs(device)
    sets = input_sets(inputs, device)
    bounds = {name: [bound(f, s) for s in sets] for name, f in {OURS: function, **baselines}.items()}
    contenders = {name: calls for name, calls in bounds.items() if None not in calls}
    samples = interleave(contenders, clock, seconds)
    floor, limit = floor_us(case, inputs, roof)
    return {
        "case": str(case),
        "device": device,
        "flops": case.flops(),
        "bytes": case.bytes_moved(),
        "floor_us": floor,
        "limit": limit,
        "input_sets": len(sets),
        "drift": drift(samples[OURS]),
        "times": {name: summary(of_one) for name, of_one in samples.items()},
    }


def summary(samples: list[float]) -> dict:
    return {
        "median_us": quantile(samples, 0.5),
        "p20_us": quantile(samples, 0.2),
        "p80_us": quantile(samples, 0.8),
        "samples_us": [round(sample, 3) for sample in samples],
    }
