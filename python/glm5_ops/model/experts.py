"""Experts: the routed experts of a mixture, forward and backward, in bf16 or FP8, on one rank or many.

``out[t] = sum_k weights[t, k] * down[e] @ swiglu(gate_up[e] @ x[t])`` with ``e = ids[t, k]`` (GLM-5, arXiv 2602.15763).
Rows are sorted by expert, multiplied expert by expert, and added up per token in f32 with k ascending: no atomics, no
padding, and every number has the same bits whatever the batch is and on however many ranks the experts are.

In FP8 a token is quantised once, before it travels; the products are those of :class:`~glm5_ops.model.Fp8Linear`, with
the weight's e4m3 form cached until the parameter changes. The gradient of the weights is that of the values the experts
saw: the quantised rows.
"""

import importlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glm5_ops.model._remembered import Remembered
from glm5_ops.model.linear import GRADIENT_FLOOR

PRECISIONS = ("bf16", "fp8")


class Route(Protocol):
    """How rows get from tokens to experts and back, for one set of ids.

    ``offsets`` (i32[local experts + 1]) is there after ``receive``.
    """

    offsets: Tensor

    def begin(self, x: Tensor, scales: Tensor | None) -> None:
        """Set out with a token per row; other work may be done before ``receive``."""

    def receive(self) -> tuple[Tensor, Tensor | None]:
        """Rows in expert order, and their scales."""

    def answer(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the experts gave, as rows and slots for ``moe_combine`` at their tokens."""

    def answer_gradient(self, d_answers: Tensor) -> Tensor:
        """The gradient of ``answer``'s rows, back in expert order; rows that no expert owns are zeros."""

    def row_gradient(self, d_rows: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of ``receive``'s rows, not added up, as rows and slots for ``moe_combine`` at their tokens."""


class LocalRoute:
    """All experts are here."""

    def __init__(self, ops: types.ModuleType, ids: Tensor, experts: int):
        self.ops, self.ids, self.experts = ops, ids, experts

    def begin(self, x: Tensor, scales: Tensor | None) -> None:
        sent = self.ops.moe_dispatch(x, self.ids, self.experts, 0, scales)
        self.rows, self.scales, self.slots, self.offsets, _ = sent

    def receive(self) -> tuple[Tensor, Tensor | None]:
        rows, scales = self.rows, self.scales
        del self.rows, self.scales
        return rows, scales

    def answer(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, self.slots

    def answer_gradient(self, d_answers: Tensor) -> Tensor:
        return d_answers

    def row_gradient(self, d_rows: Tensor) -> tuple[Tensor, Tensor]:
        return d_rows, self.slots


@dataclass(frozen=True)
class QuantizedExperts:
    """e4m3 bytes and block scales of one state of [experts, n, k]; ``for_dgrad``: of its transposition too."""

    values: Tensor
    scales: Tensor
    transposed: Tensor | None = None

    def with_transposed(self) -> "QuantizedExperts":
        if self.transposed is not None:
            return self
        return QuantizedExperts(self.values, self.scales, self.values.mT.contiguous())


@dataclass(frozen=True)
class _Bf16:
    """The products of the layer in bf16."""

    ops: types.ModuleType
    gate_up: Tensor
    down: Tensor
    limit: float | None

    def payload(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    def forward(self, rows: Tensor, _: Tensor | None, offsets: Tensor) -> tuple[Tensor, Tensor]:
        h = self.ops.grouped_gemm(rows, self.gate_up, offsets, rows.dtype)
        product = self.ops.swiglu(h, self.limit, offsets)
        return self.ops.grouped_gemm(product, self.down, offsets, rows.dtype), h

    def backward(
        self, d_y: Tensor, h: Tensor, rows: Tensor, _: Tensor | None, offsets: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ops = self.ops
        d_down = d_gate_up = None
        if wanted[1]:
            product = ops.swiglu(h, self.limit, offsets)
            d_down = ops.grouped_gemm_wgrad(d_y.mT, product.mT, offsets, self.down.dtype)
        d_h = ops.swiglu_bwd(ops.grouped_gemm(d_y, self.down.mT, offsets, d_y.dtype), h, self.limit, offsets)
        if wanted[0]:
            d_gate_up = ops.grouped_gemm_wgrad(d_h.mT, rows.mT, offsets, self.gate_up.dtype)
        return ops.grouped_gemm(d_h, self.gate_up.mT, offsets, d_y.dtype), d_gate_up, d_down


@dataclass(frozen=True)
class _Fp8:
    """The products of the layer in FP8; gradients leave in ``dtype``."""

    ops: types.ModuleType
    gate_up: QuantizedExperts
    down: QuantizedExperts
    limit: float | None
    power_of_two: bool
    dtype: torch.dtype

    def payload(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.ops.quantize_fp8(x, "1x128", self.power_of_two)

    def forward(self, rows: Tensor, scales: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        ops, gate_up, down = self.ops, self.gate_up, self.down
        h = ops.grouped_gemm(rows, gate_up.values, offsets, torch.bfloat16, scales, gate_up.scales)
        product, product_scales = ops.swiglu_fp8(h, self.limit, offsets, self.power_of_two)
        y = ops.grouped_gemm(product, down.values, offsets, torch.bfloat16, product_scales, down.scales)
        return y, h

    def backward(
        self, d_y: Tensor, h: Tensor, rows: Tensor, scales: Tensor, offsets: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        d_down = d_gate_up = None
        if wanted[1]:
            d_down = self._wgrad(d_y, self.ops.swiglu(h, self.limit, offsets), offsets)
        d_h = self.ops.swiglu_bwd(self._dgrad(d_y, self.down, offsets), h, self.limit, offsets)
        if wanted[0]:
            seen = self.ops.dequantize_fp8(rows, scales, "1x128", torch.bfloat16)
            d_gate_up = self._wgrad(d_h, seen, offsets)
        return self._dgrad(d_h, self.gate_up, offsets), d_gate_up, d_down

    def _dgrad(self, d_out: Tensor, weight: QuantizedExperts, offsets: Tensor) -> Tensor:
        rows, scales = self.ops.quantize_fp8(d_out, "1x128", self.power_of_two, GRADIENT_FLOOR)
        weight = weight.with_transposed()
        return self.ops.grouped_gemm(rows, weight.transposed, offsets, d_out.dtype, scales, weight.scales.mT)

    def _wgrad(self, d_out: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
        a, a_scales = self.ops.quantize_fp8(d_out, "128x1", self.power_of_two, GRADIENT_FLOOR, offsets)
        b, b_scales = self.ops.quantize_fp8(x, "128x1", self.power_of_two, offsets=offsets)
        return self.ops.grouped_gemm_wgrad(a, b, offsets, self.dtype, a_scales, b_scales)


class _Mixture(torch.autograd.Function):
    """One formula for all ranks and precisions: the route moves rows, the products multiply them."""

    @staticmethod
    def forward(ctx, x, weights, shared, gate_up, down, route, products):
        rows, scales = route.receive()
        y, h = products.forward(rows, scales, route.offsets)
        answers, slots = route.answer(y)
        ctx.save_for_backward(weights, rows, scales, h, answers, slots)
        ctx.route, ctx.products, ctx.has_shared = route, products, shared is not None
        return products.ops.moe_combine(answers, slots, weights, shared)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        weights, rows, scales, h, answers, slots = ctx.saved_tensors
        route, ops = ctx.route, ctx.products.ops
        d_out = d_out.contiguous()
        d_answers, d_weights = ops.moe_combine_bwd(d_out, answers, slots, weights)
        d_y = route.answer_gradient(d_answers)
        wanted = ctx.needs_input_grad[3:5]
        d_rows, d_gate_up, d_down = ctx.products.backward(d_y, h, rows, scales, route.offsets, wanted)
        d_x = ops.moe_combine(*route.row_gradient(d_rows))  # on every rank: the others wait for it
        return d_x, d_weights, d_out if ctx.has_shared else None, d_gate_up, d_down, None, None


class Experts(nn.Module):
    """The routed experts of a layer, with Hugging Face's parameters and call: a drop-in for ``GlmMoeDsaExperts``.

    Deterministic, and a token's output has the same bits in any batch. ``parallel``
    (:class:`glm5_ops.distributed.ExpertParallel`) spreads the experts over ranks: this rank holds
    ``experts / ranks`` of them, tokens travel, and the bits stay those of one rank that has all tokens, one rank's
    after the other's. All ranks must then call the layer together, forward and backward.

    Args:
        experts, hidden, intermediate: how many experts in all, and their sizes.
        precision: "bf16" or "fp8"; forward, dgrad and wgrad alike.
        limit: clamp of gate and up, as for ``swiglu``.
        power_of_two: round FP8 scales up to powers of two.
        parallel: where the experts are, or None: all here.
        dtype: of the parameters: bf16, or with "fp8" also f32.
        ops: ``glm5_ops`` (None) or ``glm5_ops.reference``.
    """

    def __init__(
        self,
        experts: int,
        hidden: int,
        intermediate: int,
        *,
        precision: str = "bf16",
        limit: float | None = None,
        power_of_two: bool = False,
        parallel: object | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        ops: types.ModuleType | None = None,
    ):
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"Experts: precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
        if dtype != torch.bfloat16 and not (precision == "fp8" and dtype == torch.float32):
            raise ValueError(f"Experts: dtype must be torch.bfloat16, or with fp8 torch.float32; got {dtype}")
        ranks = 1 if parallel is None else parallel.ranks
        if experts % ranks != 0:
            raise ValueError(f"Experts: experts must be a multiple of the {ranks} ranks; got {experts}")
        self.experts, self.hidden, self.intermediate = experts, hidden, intermediate
        self.precision, self.limit, self.power_of_two, self.parallel = precision, limit, power_of_two, parallel
        self.ops = importlib.import_module("glm5_ops") if ops is None else ops
        options = {"device": device, "dtype": dtype}
        self.gate_up_proj = nn.Parameter(torch.empty(experts // ranks, 2 * intermediate, hidden, **options))
        self.down_proj = nn.Parameter(torch.empty(experts // ranks, hidden, intermediate, **options))
        self._quantized = {"gate_up_proj": Remembered(), "down_proj": Remembered()}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(the length of a row), as ``torch.nn.Linear`` has it."""
        for parameter in self.parameters():
            bound = parameter.shape[2] ** -0.5 if parameter.shape[2] else 0.0
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self,
        hidden_states: Tensor,
        top_k_index: Tensor,
        top_k_weights: Tensor,
        shared: Tensor | Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """The weighted sum of each token's experts.

        Args:
            hidden_states: bf16[..., hidden].
            top_k_index: [tokens, topk] of any integer type; ids that are no expert (-1) are dropped.
            top_k_weights: [tokens, topk], used as f32; differentiable.
            shared: the shared expert's output, bf16 like hidden_states, added before the one rounding; or a function
                that computes it, called while tokens travel.

        Returns:
            bf16, of hidden_states' shape.

        Raises:
            ValueError: shapes or types that do not fit, in a sentence.
        """
        self._check(hidden_states, top_k_index, top_k_weights)
        x = hidden_states.reshape(-1, self.hidden)
        ids = top_k_index.int().contiguous()
        if self.parallel is None:
            route = LocalRoute(self.ops, ids, self.experts)
        else:
            route = self.parallel.route(self.ops, ids, self.experts)
        products = self._products(for_dgrad=torch.is_grad_enabled())
        with torch.no_grad():
            route.begin(*products.payload(x))
        shared = shared() if callable(shared) else shared
        flat = None if shared is None else shared.reshape(x.shape)
        weights = top_k_weights.float().contiguous()
        out = _Mixture.apply(x, weights, flat, self.gate_up_proj, self.down_proj, route, products)
        return out.view(hidden_states.shape)

    def extra_repr(self) -> str:
        return (
            f"experts={self.experts}, hidden={self.hidden}, intermediate={self.intermediate}, "
            f"precision={self.precision!r}"
        )

    def forget_quantized(self) -> None:
        """Drop the cached e4m3 weights, after a write through ``.data``; the next call makes them anew."""
        for kept in self._quantized.values():
            kept.forget()

    def _apply(self, fn, recurse=True):
        self.forget_quantized()
        return super()._apply(fn, recurse)

    def _products(self, for_dgrad: bool) -> _Bf16 | _Fp8:
        if self.precision == "bf16":
            return _Bf16(self.ops, self.gate_up_proj.detach(), self.down_proj.detach(), self.limit)
        gate_up, down = (self._fp8_of(name, for_dgrad) for name in self._quantized)
        return _Fp8(self.ops, gate_up, down, self.limit, self.power_of_two, self.gate_up_proj.dtype)

    def _fp8_of(self, name: str, for_dgrad: bool) -> QuantizedExperts:
        parameter, kept = getattr(self, name), self._quantized[name]
        quantized = kept.get(parameter, self.power_of_two)
        made = quantized or self._quantize(parameter.detach())
        made = made.with_transposed() if for_dgrad else made
        if made is not quantized:
            kept.keep(made, parameter, self.power_of_two)
        return made

    def _quantize(self, weight: Tensor) -> QuantizedExperts:
        """Expert by expert: their rows need not be whole blocks of 128."""
        parts = [self.ops.quantize_fp8(of_expert, "128x128", self.power_of_two) for of_expert in weight]
        if not parts:
            return QuantizedExperts(weight.to(torch.float8_e4m3fn), weight.new_zeros(0, 0, 0, dtype=torch.float32))
        values, scales = zip(*parts, strict=True)
        return QuantizedExperts(torch.stack(values), torch.stack(scales))

    def _check(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> None:
        if hidden_states.dtype != torch.bfloat16 or hidden_states.dim() < 1 or hidden_states.shape[-1] != self.hidden:
            got = f"{hidden_states.dtype}{list(hidden_states.shape)}"
            raise ValueError(f"Experts: hidden_states must be bf16[..., {self.hidden}]; got {got}")
        tokens = hidden_states.numel() // self.hidden if self.hidden else 0
        for name, given in (("top_k_index", top_k_index), ("top_k_weights", top_k_weights)):
            if given.dim() != 2 or given.shape[0] != tokens or given.shape != top_k_index.shape:
                raise ValueError(f"Experts: {name} must be [{tokens}, topk], one row a token; got {list(given.shape)}")
        if top_k_index.is_floating_point() or not top_k_weights.is_floating_point():
            kinds = f"{top_k_index.dtype} and {top_k_weights.dtype}"
            raise ValueError(f"Experts: top_k_index must be integers and top_k_weights floats; got {kinds}")
