"""Fp8Linear against exact products of the same quantised matrices; its promises: bits, cache, checkpoints, refusals."""

import copy
import io
import types

import pytest
import torch
from torch import nn

import glm5_ops
from glm5_ops import reference
from glm5_ops.model import Fp8Linear
from glm5_ops.model._remembered import _OptimizerSteps
from glm5_ops.model.linear import GRADIENT_FLOOR
from glm5_ops.workloads._compare import within_torch
from tests.harness import TARGETS, check_same_bits, message_of

on_targets = pytest.mark.parametrize("target", [t for t in TARGETS if not t.interpreted], ids=str)
# One dimension below a group, one of several groups, one ragged as 576 = 4.5 blocks; tokens that are no multiple of 16.
SIZES = ((3, 64, 48), (37, 576, 208), (130, 256, 576))
# A value in e4m3 is off by at most 2^-4 of itself, 2^-4 / sqrt(3) in the root mean square; two independent operands
# make sqrt(2) of that. bf16's own rounding, 2^-8, comes on top.
FP8_ERROR = 2**-4 / 3**0.5 * 2**0.5 + 2**-8


def a_layer(in_features: int, out_features: int, **options) -> Fp8Linear:
    torch.manual_seed(in_features + out_features)
    return Fp8Linear(in_features, out_features, **options)


def an_input(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    # Rows and columns of very different size, so that a scale applied to the wrong group shows.
    x = torch.randn(shape, generator=generator) * torch.exp2(torch.randn(shape[-1], generator=generator) * 2)
    return x.to(device, dtype).requires_grad_()


def the_gradient(y: torch.Tensor) -> torch.Tensor:
    """Small, as gradients are: far below quantize_fp8's default floor."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.exp2(torch.randn(y.shape[0], 1, generator=generator) * 2)
    return (torch.randn(y.shape, generator=generator) * rows * 1e-8).to(y.device, y.dtype)


def exact(x: torch.Tensor, group: str, power_of_two: bool, floor: float) -> torch.Tensor:
    """What the quantised matrix stands for, without rounding."""
    values, scales = reference.quantize_fp8(x.detach(), group, power_of_two, floor)
    return reference.dequantize_fp8(values, scales.double(), group, torch.float64)


def judge(name: str, got: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`got` is left @ right.T as good as torch computes it from the same factors in f32."""
    torchs = (left.float() @ right.float().t()).to(got.dtype)
    verdict = within_torch(got.detach(), left @ right.t(), torchs)
    assert verdict.passed, f"{name}: {verdict}"


@on_targets
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(("tokens", "in_features", "out_features"), SIZES)
def test_three_products_are_those_of_the_quantised_matrices(
    tokens, in_features, out_features, power_of_two, dtype, target
):
    layer = a_layer(in_features, out_features, bias=False, power_of_two=power_of_two, dtype=dtype, device=target.device)
    x = an_input(tokens, in_features, device=target.device, dtype=dtype)
    y = layer(x)
    gradient = the_gradient(y)
    y.backward(gradient)
    weight = exact(layer.weight, "128x128", power_of_two, 1e-4)
    judge("forward", y, exact(x, "1x128", power_of_two, 1e-4), weight)
    judge("dgrad", x.grad, exact(gradient, "1x128", power_of_two, GRADIENT_FLOOR), weight.t())
    judge(
        "wgrad",
        layer.weight.grad,
        exact(gradient, "128x1", power_of_two, GRADIENT_FLOOR).t(),
        exact(x, "128x1", power_of_two, 1e-4).t(),
    )
    assert layer.weight.grad.dtype == x.grad.dtype == y.dtype == dtype


@on_targets
@pytest.mark.parametrize(("tokens", "in_features", "out_features"), SIZES)
def test_is_near_a_bf16_linear(tokens, in_features, out_features, target):
    layer = a_layer(in_features, out_features, dtype=torch.bfloat16, device=target.device)
    plain = nn.Linear(in_features, out_features, dtype=torch.bfloat16, device=target.device)
    plain.load_state_dict(layer.state_dict())
    # Independent entries of one size: correlated ones would need another bound than FP8_ERROR's.
    torch.manual_seed(3)
    x = torch.randn(tokens, in_features).to(target.device, torch.bfloat16).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    y, expected = layer(x), plain(twin)
    gradient = torch.randn(y.shape).to(y) * 1e-6
    y.backward(gradient)
    expected.backward(gradient)
    pairs = {
        "y": ((y - layer.bias).detach(), (expected - plain.bias).detach()),
        "x.grad": (x.grad, twin.grad),
        "weight.grad": (layer.weight.grad, plain.weight.grad),
    }
    for name, (got, near) in pairs.items():
        error = float((got - near).float().norm() / near.float().norm())
        assert error < FP8_ERROR, f"{name} is off by {error:.3f}"
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


@on_targets
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_do_not_depend_on_the_batch(dtype, target):
    layer = a_layer(576, 208, dtype=dtype, device=target.device)
    x = an_input(67, 576, device=target.device, dtype=dtype)
    y = layer(x)
    y.backward(the_gradient(y))
    for rows in (slice(0, 1), slice(66, 67), slice(5, 38)):
        part = x.detach()[rows].requires_grad_()
        out = layer(part)
        out.backward(the_gradient(y)[rows])
        check_same_bits(f"rows {rows}", (out, part.grad), (y[rows], x.grad[rows]))


@on_targets
def test_same_bits_twice_and_with_any_number_of_threads(target):
    layer = a_layer(256, 304, device=target.device)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            x = an_input(70, 256, device=target.device)
            layer.weight.grad = None
            y = layer(x)
            y.backward(the_gradient(y))
            results.append((y, x.grad, layer.weight.grad))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        check_same_bits("y, dgrad, wgrad", result, results[0])


@on_targets
def test_reference_ops_serve_as_well_as_native_ones(target):
    native = a_layer(256, 208, device=target.device)
    slow = copy.deepcopy(native)
    slow.ops = reference
    for layer in (native, slow):
        layer.x = an_input(2, 9, 256, device=target.device)
        y = layer(layer.x)
        y.backward(torch.ones_like(y))
    # f32 sums of at most 256 products in two orders
    close = {"rtol": 2**-16, "atol": 2**-12}
    torch.testing.assert_close(native(native.x), slow(slow.x), **close)
    torch.testing.assert_close(native.x.grad, slow.x.grad, **close)
    torch.testing.assert_close(native.weight.grad, slow.weight.grad, **close)
    assert torch.equal(
        native.to_checkpoint()["weight"].view(torch.uint8), slow.to_checkpoint()["weight"].view(torch.uint8)
    )


def test_any_leading_dimensions_also_none_and_zero():
    layer = a_layer(64, 48)
    flat = an_input(12, 64)
    y = layer(flat)
    check_same_bits("3 x 4", [layer(flat.view(3, 4, 64))], [y.view(3, 4, 48)])
    check_same_bits("one vector", [layer(flat[5])], [y[5]])
    check_same_bits("strided rows", [layer(flat.t().contiguous().t())], [y])
    empty = torch.zeros(0, 3, 64, requires_grad=True)
    out = layer(empty)
    assert out.shape == (0, 3, 48)
    out.sum().backward()
    assert empty.grad.shape == empty.shape and not layer.weight.grad.any() and not layer.bias.grad.any()


def test_wgrad_sums_over_whole_steps_of_16_tokens():
    """The CUDA kernels move rows in steps of 16 bytes; here the rows are tokens, of which there may be any number."""
    k_of_products = []

    def fp8_gemm(a, *others):
        k_of_products.append(a.shape[1])
        return glm5_ops.fp8_gemm(a, *others)

    layer = a_layer(64, 48)
    layer.ops = types.SimpleNamespace(quantize_fp8=glm5_ops.quantize_fp8, fp8_gemm=fp8_gemm)
    layer(an_input(37, 64)).sum().backward()
    assert k_of_products == [64, 48, 48]  # in_features, out_features, 37 tokens and 11 of zeros


def test_gradients_only_where_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(_OptimizerSteps, "taken", 0)  # steps of other tests would look like a change of the weight
    layer = a_layer(64, 48).requires_grad_(False)
    x = an_input(5, 64)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    layer.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None
    assert layer._kept().transposed is not None, "the first call needed dgrad"
    layer.forget_quantized()
    layer(x.detach())
    assert layer._kept().transposed is None, "no dgrad, no transposed copy"


def test_a_second_derivative_is_refused():
    x = an_input(5, 64)
    (gradient,) = torch.autograd.grad(a_layer(64, 48)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_autocast_chooses_the_dtype_of_the_output():
    layer, x = a_layer(64, 48), an_input(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32


# The cache


def fresh(layer: Fp8Linear, x: torch.Tensor) -> torch.Tensor:
    """What a layer that has never quantised its weight returns."""
    new = Fp8Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
    new.load_state_dict(layer.state_dict())
    return new(x)


CHANGES = {
    "sgd": lambda layer: torch.optim.SGD(layer.parameters(), lr=0.5).step(),
    "adamw": lambda layer: torch.optim.AdamW(layer.parameters(), lr=0.5).step(),
    "foreach": lambda layer: torch.optim.AdamW(layer.parameters(), lr=0.5, foreach=True).step(),
    "fused": lambda layer: torch.optim.AdamW(layer.parameters(), lr=0.5, fused=True).step(),
    "in place": lambda layer: layer.weight.detach().mul_(-2),
    "load_state_dict": lambda layer: layer.load_state_dict({n: -p for n, p in layer.state_dict().items()}),
    "assigned": lambda layer: layer.load_state_dict({n: -p for n, p in layer.state_dict().items()}, assign=True),
    "replaced": lambda layer: setattr(layer, "weight", nn.Parameter(-layer.weight.detach())),
    "data replaced": lambda layer: setattr(layer.weight, "data", -layer.weight.data),
    "dtype": lambda layer: layer.bfloat16(),
    "written through data, then told": lambda layer: (layer.weight.data.neg_(), layer.forget_quantized()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_quantised_anew(change):
    layer, x = a_layer(256, 48), an_input(5, 256)
    before = layer(x)
    before.sum().backward()
    assert layer._kept() is not None
    CHANGES[change](layer)
    with torch.no_grad():
        after = layer(x)
        assert not torch.equal(after, before)
        check_same_bits(change, [after], [fresh(layer, x)])


def test_an_unchanged_weight_is_quantised_once():
    layer, x = a_layer(256, 48), an_input(5, 256)
    layer(x).sum().backward()
    first = layer._kept()
    layer(x).sum().backward()
    with torch.no_grad():
        layer.eval()(x)
    assert layer._kept() is first
    assert torch.equal(first.transposed.view(torch.uint8), first.values.t().view(torch.uint8))


def test_a_frozen_weight_is_not_touched_by_the_optimizer_of_another():
    layer, x = a_layer(256, 48).requires_grad_(False), an_input(5, 256)
    layer(x)
    seen = layer._kept()
    other = nn.Parameter(torch.zeros(1))
    other.grad = torch.ones(1)
    torch.optim.SGD([other], lr=1).step()
    assert seen is not None and layer._kept() is seen


def test_state_dict_has_the_plain_weight_alone():
    layer = a_layer(256, 48)
    layer(an_input(5, 256))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.state_dict()["weight"].data_ptr() == layer.weight.data_ptr()


def test_copies_and_pickles_keep_the_bytes_and_go_their_own_way():
    layer, x = layer_of_checkpoint(), an_input(5, 200)
    y = layer(x)
    twin = copy.deepcopy(layer)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (twin, loaded):
        assert other.ops is glm5_ops and other._kept() is not None
        check_same_bits("a copy", [other(x)], [y])
    with torch.no_grad():
        twin.weight.zero_()
    assert not twin(x).any()
    check_same_bits("the original", [layer(x)], [y])


def test_weights_of_inference_mode_are_quantised_in_every_call():
    with torch.inference_mode():
        layer, x = a_layer(64, 48), an_input(5, 64)
        before = layer(x)
        layer.weight.neg_()
        layer.bias.neg_()
        check_same_bits("negated", [layer(x)], [-before])


def test_compiles_to_one_graph_with_the_same_bits():
    layer = a_layer(256, 200, dtype=torch.bfloat16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for function in (layer, compiled, compiled):
        x = an_input(2, 9, 256, dtype=torch.bfloat16)
        layer.zero_grad()
        y = function(x)
        y.backward(torch.ones_like(y))
        results.append((y, x.grad, layer.weight.grad))
    for result in results[1:]:
        check_same_bits("compiled", result, results[0])
    with torch.no_grad():
        layer.weight.neg_()
        layer.bias.neg_()
        check_same_bits("after a change", [compiled(x)], [-y])


def test_learns():
    torch.manual_seed(0)
    teacher, student, x = nn.Linear(64, 32), a_layer(64, 32), torch.randn(256, 64)
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=0.02), []
    for _ in range(80):
        loss = (student(x) - teacher(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # what is left is the rounding of e4m3
    assert losses[-1] < losses[0] * FP8_ERROR**2 * 2


# Other layers and checkpoints


def layer_of_checkpoint(rows: int = 576, cols: int = 200, **options) -> Fp8Linear:
    """Bytes and scales as another quantiser may have left them: amax is not 448 in every block."""
    generator = torch.Generator().manual_seed(4)
    weight = (torch.randn(rows, cols, generator=generator) * 40).clamp(-300, 300).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // 128), -(-cols // 128), generator=generator) * 1e-3
    return Fp8Linear.from_checkpoint(weight, scales, **options)


def same_checkpoint(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a)


def test_from_linear_shares_the_parameters():
    plain = nn.Linear(64, 48, bias=False, dtype=torch.bfloat16).eval()
    layer = Fp8Linear.from_linear(plain)
    assert layer.weight is plain.weight and layer.bias is None and not layer.training
    assert (layer.in_features, layer.out_features) == (64, 48)
    layer(an_input(3, 64, dtype=torch.bfloat16)).sum().backward()
    assert plain.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_checkpoint_comes_back_to_the_byte(dtype):
    layer = layer_of_checkpoint(bias=torch.randn(576), dtype=dtype)
    stored = layer.to_checkpoint()
    assert {n: (t.dtype, list(t.shape)) for n, t in stored.items()} == {
        "weight": (torch.float8_e4m3fn, [576, 200]),
        "weight_scale_inv": (torch.float32, [5, 2]),
        "bias": (dtype, [576]),
    }
    original = layer_of_checkpoint(bias=stored["bias"])
    assert same_checkpoint({**original.to_checkpoint(), "bias": stored["bias"]}, stored)
    again = Fp8Linear.from_checkpoint(**stored, dtype=dtype)
    assert same_checkpoint(again.to_checkpoint(), stored)
    assert torch.equal(
        again.weight, reference.dequantize_fp8(stored["weight"], stored["weight_scale_inv"], "128x128", dtype)
    )


def test_the_checkpoints_own_bytes_are_multiplied():
    layer, x = layer_of_checkpoint(dtype=torch.float32), an_input(7, 200)
    stored = layer.to_checkpoint()
    weight = reference.dequantize_fp8(stored["weight"], stored["weight_scale_inv"].double(), "128x128", torch.float64)
    judge("forward", layer(x), exact(x, "1x128", False, 1e-4), weight)
    with torch.no_grad():
        layer.weight.mul_(1.0)
    assert not same_checkpoint(layer.to_checkpoint(), stored), "after an update the weight is quantised as ours are"


def test_power_of_two_scales_survive_a_trip_through_the_plain_weight():
    layer = a_layer(200, 576, power_of_two=True, dtype=torch.bfloat16)
    stored = layer.to_checkpoint()
    loaded = Fp8Linear.from_checkpoint(**stored, power_of_two=True)
    loaded.forget_quantized()
    assert same_checkpoint(loaded.to_checkpoint(), stored)


def test_load_state_dict_takes_the_pair_of_a_checkpoint():
    stored = layer_of_checkpoint().to_checkpoint()
    model = nn.Sequential(Fp8Linear(200, 576, bias=False, dtype=torch.bfloat16), nn.ReLU())
    model.load_state_dict({f"0.{name}": tensor for name, tensor in stored.items()})
    assert same_checkpoint(model[0].to_checkpoint(), stored)
    with pytest.raises(RuntimeError, match=r"0\.weight_scale_inv must be f32\|e8m0.*which is \[5, 2\]; got None"):
        model.load_state_dict({"0.weight": stored["weight"]})


def test_agrees_with_the_quantiser_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(integration, "Fp8Quantize"):
        pytest.skip(f"transformers {transformers.__version__} has no Fp8Quantize")
    quantizer = type("Quantizer", (), {"quantization_config": transformers.FineGrainedFP8Config()})
    layer = a_layer(384, 640, bias=False)
    ours = layer.to_checkpoint()
    theirs = integration.Fp8Quantize(quantizer).convert({"weight": layer.weight.detach()})
    ulps = ours["weight_scale_inv"].view(torch.int32) - theirs["weight_scale_inv"].view(torch.int32)
    assert int(ulps.abs().max()) <= 1
    # a scale that differs in its last bit can send a quotient to the other side of a midpoint
    steps = ours["weight"].view(torch.uint8).int() - theirs["weight"].view(torch.uint8).int()
    assert int(steps.abs().max()) <= 1 and float((steps != 0).float().mean()) < 1e-3
    loaded = Fp8Linear.from_checkpoint(**theirs, dtype=torch.float32)
    assert same_checkpoint(loaded.to_checkpoint(), theirs)
    # it maps lists of tensors to a list of them
    [plain] = integration.Fp8Dequantize(quantizer).convert({name: [t] for name, t in theirs.items()})["weight"]
    torch.testing.assert_close(loaded.weight, plain.to(torch.float32), rtol=2**-8, atol=0)


# Refusals


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: a_layer(64, 48)(torch.zeros(5, 63)),
            "Fp8Linear: x must be bf16|f32[..., in_features], where in_features is 64; got torch.float32[5, 63] on cpu",
        ),
        (
            lambda: a_layer(64, 48)(torch.zeros(5, 64, dtype=torch.float16)),
            "Fp8Linear: x must be bf16|f32[..., in_features], where in_features is 64; got torch.float16[5, 64] on cpu",
        ),
        (
            lambda: a_layer(64, 48)(3),
            "Fp8Linear: x must be bf16|f32[..., in_features], where in_features is 64; got 3",
        ),
        (
            lambda: a_layer(64, 48)(torch.zeros(5, 64, device="meta")),
            "Fp8Linear: all tensors must be on one device; x is on meta, weight is on cpu",
        ),
        (
            lambda: Fp8Linear(64, 48, dtype=torch.float64),
            "Fp8Linear: dtype must be torch.bfloat16 or torch.float32; got torch.float64",
        ),
        (
            lambda: Fp8Linear.from_linear(nn.Linear(64, 48).half()),
            "Fp8Linear: linear.weight must be bf16|f32[out_features, in_features]; got torch.float16[48, 64] on cpu",
        ),
        (
            lambda: Fp8Linear.from_checkpoint(torch.zeros(48, 64), torch.zeros(1, 1)),
            "Fp8Linear: weight must be e4m3[out_features, in_features]; got torch.float32[48, 64] on cpu",
        ),
        (
            lambda: Fp8Linear.from_checkpoint(torch.zeros(576, 64).to(torch.float8_e4m3fn), torch.zeros(4, 1)),
            "Fp8Linear: weight_scale_inv must be f32|e8m0[ceil(out_features/128), ceil(in_features/128)], "
            "which is [5, 1]; got torch.float32[4, 1] on cpu",
        ),
    ],
)
def test_misuse_is_refused_in_a_sentence(call, sentence):
    assert message_of(call) == sentence


def test_autocast_to_f16_is_refused():
    with torch.autocast("cpu", torch.float16):
        message = message_of(a_layer(64, 48), torch.zeros(5, 64))
    assert message == "Fp8Linear: torch.autocast must be to bfloat16 or off; got torch.float16"
