"""Fp8Linear: a linear layer whose three matrix products run in FP8.

========  ================================  ==================================  =====================
product   left operand                      right operand                       sum over
========  ================================  ==================================  =====================
forward   x, one scale per 1x128            weight, one scale per 128x128       in_features
dgrad     gradient, one scale per 1x128     the same weight bytes, transposed   out_features
wgrad     gradient, one scale per 128x1     x, one scale per 128x1              tokens
========  ================================  ==================================  =====================

The weight is a plain bf16 or f32 parameter, which the optimizer sees; its e4m3 form is cached and made anew when the
parameter has changed. Forward keeps x as e4m3 for wgrad, half of what a bf16 layer keeps.
"""

import importlib
import types
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glm5_ops.model._remembered import Remembered

# Gradients are often far below the floor that suits activations. A group below this one is as good as zero in bf16
# training, and the product of two scales is still a normal f32.
GRADIENT_FLOOR = 2.0**-64
# The CUDA kernels move rows in steps of 16 bytes, and wgrad's rows are as long as there are tokens.
TOKENS_MULTIPLE = 16
BLOCK = 128
FLOATS = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class QuantizedWeight:
    """e4m3 bytes and block scales of one state of a parameter."""

    values: Tensor  # e4m3[out_features, in_features]
    scales: Tensor  # f32[ceil(out_features/128), ceil(in_features/128)]
    transposed: Tensor | None = None  # the same bytes as e4m3[in_features, out_features]

    def with_transposed(self) -> "QuantizedWeight":
        if self.transposed is not None:
            return self
        return QuantizedWeight(self.values, self.scales, self.values.t().contiguous())


class _Product(torch.autograd.Function):
    """x @ weight.T with gradients; the weight's e4m3 form comes from the caller, its gradient goes to the parameter."""

    @staticmethod
    def forward(ctx, x, weight, values, scales, transposed, ops, power_of_two, out_dtype):
        activations, activation_scales = ops.quantize_fp8(x, "1x128", power_of_two)
        columns = column_scales = None
        if weight.requires_grad:
            columns, column_scales = ops.quantize_fp8(_whole_steps(x), "128x1", power_of_two)
        ctx.save_for_backward(values if transposed is None else transposed, scales, columns, column_scales)
        ctx.weight_is_transposed = transposed is not None
        ctx.ops, ctx.power_of_two, ctx.x_dtype, ctx.weight_dtype = ops, power_of_two, x.dtype, weight.dtype
        return ops.fp8_gemm(activations, activation_scales, values, scales, out_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        weight, scales, columns, column_scales = ctx.saved_tensors
        ops, gradient = ctx.ops, gradient.contiguous()
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            rows, row_scales = ops.quantize_fp8(gradient, "1x128", ctx.power_of_two, GRADIENT_FLOOR)
            weight = weight if ctx.weight_is_transposed else weight.t().contiguous()
            x_gradient = ops.fp8_gemm(rows, row_scales, weight, scales.t(), ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            rows, row_scales = ops.quantize_fp8(_whole_steps(gradient), "128x1", ctx.power_of_two, GRADIENT_FLOOR)
            weight_gradient = ops.fp8_gemm(rows, row_scales, columns, column_scales, ctx.weight_dtype)
        return x_gradient, weight_gradient, None, None, None, None, None, None


def _whole_steps(x: Tensor) -> Tensor:
    """Rows of zeros up to a multiple of 16: they change no scale and add nothing to a sum."""
    missing = -x.shape[0] % TOKENS_MULTIPLE
    return F.pad(x, (0, 0, 0, missing)) if missing else x


class Fp8Linear(nn.Module):
    """``y = x @ weight.T + bias`` with forward, dgrad and wgrad in FP8.

    A row of the output has the same bits however many other rows there are. ``y`` has x's dtype; under
    ``torch.autocast`` to bfloat16 it is bf16 whatever x is. Autocast changes nothing else: the products are FP8 anyway.

    The e4m3 form of the weight is cached until the parameter changes: optimizer steps, ``load_state_dict``, ``to()``
    and in-place operations are noticed. A write through ``weight.data`` or a NumPy view is not; call
    ``forget_quantized()`` after one. ``state_dict()`` has the plain weight alone. Weights made under
    ``torch.inference_mode`` count no versions and are quantised in every call. Under ``torch.compile``
    (``fullgraph=True`` works) the quantisation is part of the graph and runs in every call too, because a graph cannot
    ask whether a parameter has changed.

    The gradient with respect to the weight sums over tokens in one fixed order. There is no second derivative. CUDA:
    ``in_features`` must be a multiple of 16, and ``out_features`` too where x needs a gradient; tokens are padded here.

    Args:
        in_features, out_features: any sizes on the CPU; blocks of 128 may be ragged.
        bias: whether to add a learned bias, in the weight's dtype.
        power_of_two: round all scales up to powers of two.
        dtype: of the parameters, bf16 or f32.
        ops: ``glm5_ops`` (None) or ``glm5_ops.reference``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        power_of_two: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        ops: types.ModuleType | None = None,
    ):
        super().__init__()
        self.in_features, self.out_features, self.power_of_two = in_features, out_features, power_of_two
        self.ops = importlib.import_module("glm5_ops") if ops is None else ops
        self._quantized = Remembered()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        _require(self.weight.dtype in FLOATS, "dtype", "torch.bfloat16 or torch.float32", self.weight.dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial values of ``torch.nn.Linear``: uniform within 1 / sqrt(in_features)."""
        bound = self.in_features**-0.5 if self.in_features else 0.0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        out_dtype = _output_dtype(x)
        rows = (x if x.dim() > 1 else x[None]).flatten(0, -2).contiguous()
        weight = self._weight_fp8(for_dgrad=torch.is_grad_enabled() and x.requires_grad)
        y = _Product.apply(
            rows, self.weight, weight.values, weight.scales, weight.transposed, self.ops, self.power_of_two, out_dtype
        )
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"power_of_two={self.power_of_two}"
        )

    # The cache

    def forget_quantized(self) -> None:
        """Drop the cached e4m3 weight; the next call makes it anew."""
        self._quantized.forget()

    def _weight_fp8(self, for_dgrad: bool = False) -> QuantizedWeight:
        if torch.compiler.is_compiling():
            return self._quantize()
        kept = self._kept()
        quantized = self._quantize() if kept is None else kept
        if for_dgrad:
            quantized = quantized.with_transposed()
        if quantized is not kept:
            self._keep(quantized)
        return quantized

    def _quantize(self) -> QuantizedWeight:
        return QuantizedWeight(*self.ops.quantize_fp8(self.weight.detach(), "128x128", self.power_of_two))

    def _kept(self) -> QuantizedWeight | None:
        return self._quantized.get(self.weight, self.power_of_two)

    def _keep(self, quantized: QuantizedWeight) -> None:
        self._quantized.keep(quantized, self.weight, self.power_of_two)

    def _apply(self, fn, recurse=True):
        self.forget_quantized()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        """For copies and pickles: the module of ops by its name, the e4m3 bytes if they are those of the weight."""
        return self.__dict__ | {"ops": getattr(self.ops, "__name__", self.ops), "_quantized": self._kept()}

    def __setstate__(self, state: dict) -> None:
        quantized = state["_quantized"]
        super().__setstate__(state | {"_quantized": Remembered()})
        if isinstance(self.ops, str):
            self.ops = importlib.import_module(self.ops)
        if quantized is not None:
            self._keep(quantized)

    # Other layers and checkpoints

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, power_of_two: bool = False, ops: types.ModuleType | None = None):
        """An FP8 layer on the same parameters (not copies) as a ``torch.nn.Linear``."""
        weight = linear.weight
        _require(weight.dtype in FLOATS, "linear.weight", "bf16|f32[out_features, in_features]", weight)
        layer = cls._empty(weight.shape, linear.bias is not None, weight.dtype, power_of_two, ops)
        layer.weight, layer.bias = weight, linear.bias
        return layer.train(linear.training)

    @classmethod
    def from_checkpoint(
        cls,
        weight: Tensor,
        weight_scale_inv: Tensor,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.bfloat16,
        power_of_two: bool = False,
        ops: types.ModuleType | None = None,
    ) -> "Fp8Linear":
        """A layer from the two tensors of a checkpoint that was quantised with Hugging Face's ``FineGrainedFP8Config``.

        The stored bytes and scales are used as they are until the parameter changes; the parameter is their product.

        Args:
            weight: e4m3[out_features, in_features].
            weight_scale_inv: f32 (or e8m0) [ceil(out_features/128), ceil(in_features/128)].
            bias: [out_features] or None.
            dtype: of the parameters.
            power_of_two: for what is quantised later: activations, gradients and a weight that has been trained on.
        """
        _check_checkpoint("weight", weight, weight_scale_inv)
        _require(dtype in FLOATS, "dtype", "torch.bfloat16 or torch.float32", dtype)
        layer = cls._empty(weight.shape, bias is not None, dtype, power_of_two, ops)
        state = {"weight": weight, "weight_scale_inv": weight_scale_inv}
        layer.to_empty(device=weight.device)
        layer.load_state_dict(state if bias is None else state | {"bias": bias})
        return layer

    def to_checkpoint(self) -> dict[str, Tensor]:
        """``weight`` (e4m3) and ``weight_scale_inv``, as ``FineGrainedFP8Config`` has them, and the bias.

        The bytes are those that forward multiplies with: of a layer that was loaded from a checkpoint and not trained
        since, the checkpoint's own.
        """
        quantized = self._weight_fp8()
        state = {"weight": quantized.values.clone(), "weight_scale_inv": quantized.scales.clone()}
        return state if self.bias is None else state | {"bias": self.bias.detach().clone()}

    @classmethod
    def _empty(cls, shape: torch.Size, bias: bool, dtype: torch.dtype, power_of_two: bool, ops) -> "Fp8Linear":
        out_features, in_features = shape
        return cls(in_features, out_features, bias, power_of_two=power_of_two, device="meta", dtype=dtype, ops=ops)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        """Also takes the pair of a checkpoint: ``weight`` in e4m3 with ``weight_scale_inv``."""
        self.forget_quantized()
        values, scales = state_dict.get(prefix + "weight"), state_dict.get(prefix + "weight_scale_inv")
        if values is not None and values.dtype == torch.float8_e4m3fn:
            try:
                values, scales = self._checkpoint_pair(prefix, values, scales)
            except ValueError as error:
                error_msgs.append(str(error))
                return
            plain = self.ops.dequantize_fp8(values, scales, "128x128", self.weight.dtype)
            state_dict = {name: t for name, t in state_dict.items() if name != prefix + "weight_scale_inv"}
            state_dict[prefix + "weight"] = plain
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if scales is not None and not error_msgs:
            self._keep(QuantizedWeight(values, scales))

    def _checkpoint_pair(self, prefix: str, values: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor]:
        _check_checkpoint(prefix + "weight", values, scales)
        _require(values.shape == self.weight.shape, prefix + "weight", f"e4m3{list(self.weight.shape)}", values)
        device = self.weight.device
        return values.to(device, copy=True).contiguous(), scales.to(device, torch.float32, copy=True).contiguous()

    def _check(self, x: Tensor) -> None:
        fits = isinstance(x, Tensor) and x.dim() >= 1 and x.shape[-1] == self.in_features and x.dtype in FLOATS
        _require(fits, "x", f"bf16|f32[..., in_features], where in_features is {self.in_features}", x)
        if x.device != self.weight.device:
            raise ValueError(
                f"Fp8Linear: all tensors must be on one device; x is on {x.device}, weight is on {self.weight.device}"
            )


def _output_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    _require(dtype in FLOATS, "torch.autocast", "to bfloat16 or off", dtype)
    return dtype


def _check_checkpoint(name: str, values: Tensor, scales: Tensor | None) -> None:
    fits = isinstance(values, Tensor) and values.dtype == torch.float8_e4m3fn and values.dim() == 2
    _require(fits, name, "e4m3[out_features, in_features]", values)
    blocks = [-(-size // BLOCK) for size in values.shape]
    fits = isinstance(scales, Tensor) and list(scales.shape) == blocks and scales.dtype in _scale_dtypes()
    name += "_scale_inv"
    _require(fits, name, f"f32|e8m0[ceil(out_features/128), ceil(in_features/128)], which is {blocks}", scales)


def _scale_dtypes() -> tuple[torch.dtype, ...]:
    e8m0 = getattr(torch, "float8_e8m0fnu", None)  # torch 2.7 and later
    return (torch.float32,) if e8m0 is None else (torch.float32, e8m0)


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        if isinstance(got, Tensor):
            got = f"{got.dtype}{list(got.shape)} on {got.device}"
        raise ValueError(f"Fp8Linear: {name} must be {expected}; got {got}")
