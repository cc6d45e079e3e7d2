"""A file per op: ``CASES``, ``QUICK`` (those of a short run) and ``BASELINES``.

The first baseline is the one that ratios are given against.
"""

import pkgutil
from importlib import import_module
from types import ModuleType


def benchmarks() -> dict[str, ModuleType]:
    """The benchmark of every op by the op's name."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("bench_")]
    return {name.removeprefix("bench_"): import_module(f"{__name__}.{name}") for name in names}
