"""Registration: a function becomes an operator of torch, with its fake kernel and its gradient.

``Library.define`` and ``impl`` rather than ``custom_op``: 2 to 6 us less per call, and one path in eager mode and under
``torch.compile``.
"""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from glm5_ops import _native

NAMESPACE = "glm5_ops"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OPS: dict[str, Callable] = {}


def op(*, fake: Callable, mutates: tuple[str, ...] = ()) -> Callable:
    """Register the decorated function as ``glm5_ops::<its name>`` and return the operator.

    Args:
        fake: checks the arguments and allocates the outputs; the function's own first step, and all that tracing runs.
        mutates: the arguments that the op writes to.
    """

    def register(function: Callable) -> Callable:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=mutates)
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, function, "CPU")
        LIBRARY.impl(name, _on_its_gpu(function) if _native.with_cuda else _refuse_cuda(name), "CUDA")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        overload.__doc__ = function.__doc__
        overload.__signature__ = inspect.signature(function)
        OPS[name] = overload
        return overload

    return register


def differentiable(operator: torch._ops.OpOverload, *, save: Callable, backward: Callable) -> None:
    """Give an operator its gradient: `save(ctx, inputs, output)` and `backward(ctx, *grads)`."""
    torch.library.register_autograd(operator.name(), backward, setup_context=save, lib=LIBRARY)


def stream_of(tensor: Tensor) -> int:
    """The current CUDA stream of the tensor's device as an address; 0 on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def workspace_of(tensor: Tensor, cpu_bytes: Callable[[], int], cuda_bytes: Callable[[], int] | None = None) -> Tensor:
    """Scratch for one call, on the tensor's device; most CUDA kernels need none."""
    wanted = cuda_bytes if tensor.is_cuda else cpu_bytes
    return torch.empty(0 if wanted is None else wanted(), dtype=torch.uint8, device=tensor.device)


def _on_its_gpu(function: Callable) -> Callable:
    """The tensors' GPU, not the process's current one, is where a kernel must be launched."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        device = next(a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_cuda)
        if device.index == torch.cuda.current_device():
            return function(*args, **kwargs)
        with torch.cuda.device(device):
            return function(*args, **kwargs)

    return call


def _refuse_cuda(name: str) -> Callable:
    def call(*args, **kwargs):
        raise ValueError(
            f"{name}: the tensors must be on the CPU, because this build of glm5_ops has no CUDA kernels; "
            "got a CUDA tensor. Build with nvcc on PATH or with GLM5_OPS_CUDA=wheels; `glm5-ops doctor` shows the build"
        )

    return call
