"""Deterministic kernels for GLM-5-style models, on Hopper and on CPUs.

Every op has a reference of the same name in :mod:`glm5_ops.reference`.
"""

__version__ = "0.1.0"

try:
    import torch as _torch  # noqa: F401  the ops are operators of torch; its OpenMP runtime is ours

    from glm5_ops._native import Error
    from glm5_ops.ops import *  # noqa: F403
    from glm5_ops.ops import __all__ as _ops

    __all__ = ["Error", *_ops]
except ImportError as _error:
    # `glm5-ops doctor` must still start and say what is missing; whoever asks for an op gets the cause.
    _cause = _error

    def __getattr__(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            f"glm5_ops.{name} is not available: {_cause}. The ops need torch 2.6 or later (pip install 'glm5-ops[torch]'); "
            "`python -m glm5_ops doctor` shows the state of this installation"
        ) from _cause
