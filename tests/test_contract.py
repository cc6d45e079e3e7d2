import pytest
import torch

from glm5_ops.ops._contract import Contract, TensorLine


def check(line: str, tensor: torch.Tensor, **lengths: int) -> bool:
    return TensorLine("x", line).fits(tensor, dict(lengths))


def test_dimensions_are_bound_by_the_first_tensor_and_held_for_the_rest():
    contract = Contract("op", a="f32[rows, cols]", b="f32[cols, ceil(rows/4)]", c="i32[3]")
    assert contract.check(a=torch.zeros(5, 7), b=torch.zeros(7, 2), c=torch.zeros(3).int()) == {"rows": 5, "cols": 7}
    for wrong in (torch.zeros(7, 1), torch.zeros(6, 2), torch.zeros(7), torch.zeros(7, 2).double()):
        with pytest.raises(ValueError, match=r"op: b must be f32\[cols, ceil\(rows/4\)\], row-major, where cols is 7"):
            contract.check(a=torch.zeros(5, 7), b=wrong)
    with pytest.raises(ValueError, match=r"op: c must be i32\[3\]"):
        contract.check(c=torch.zeros(4).int())


def test_layouts():
    x = torch.zeros(6, 8)
    assert check("f32[r, c]", x) and not check("f32[r, c]", x[:, :4]) and not check("f32[r, c]", x.t())
    assert check("f32[r, c] strided", x[:, :4]) and not check("f32[r, c] strided", x.t())
    assert check("f32[r, c] either", x.t()) and not check("f32[r, c] either", x[::2, ::2])
    assert check("f32[r, c] any", x[::2, ::2])
    columns = torch.empty_strided((6, 3), (1, 8))
    assert check("f32[r, c] columns", columns)
    assert not check("f32[r, c] columns", torch.empty_strided((6, 3), (1, 6)))
    assert not check("f32[r, c] columns", x[:, :3])
    assert check("f32[r, c] columns", torch.zeros(1, 1)) and check("f32[r, c] columns", torch.zeros(0, 2))


def test_an_optional_tensor_may_be_none_and_others_not():
    contract = Contract("op", a="f32[rows]", b="f32[rows]?")
    assert contract.check(a=torch.zeros(2), b=None) == {"rows": 2}
    with pytest.raises(ValueError, match=r"op: a must be f32\[rows\], row-major; got None"):
        contract.check(a=None)


def test_a_tensor_that_needs_grad_is_refused_unless_the_op_has_a_gradient_or_grad_is_off():
    x = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="op: a requires grad, but op has no gradient"):
        Contract("op", a="f32[rows]").check(a=x)
    with torch.no_grad():
        Contract("op", a="f32[rows]").check(a=x)
    Contract("op", differentiable=True, a="f32[rows]").check(a=x)


def test_outputs_have_the_layout_of_their_line():
    contract = Contract("op", a="f32[rows, cols]", s="f32[rows, ceil(cols/4)] columns", o="bf16|f32[cols, rows]")
    a = torch.zeros(5, 9)
    lengths = contract.check(a=a)
    scales = contract.empty("s", lengths, like=a)
    assert scales.shape == (5, 3) and scales.stride() == (1, 8)
    out = contract.empty("o", lengths, like=a, dtype=torch.float32)
    assert out.shape == (9, 5) and out.dtype == torch.float32 and out.is_contiguous()


def test_a_line_that_is_no_line_is_refused():
    for line in ("f32[a", "f32[a] sideways", "f32"):
        with pytest.raises(ValueError, match="is not a contract line"):
            Contract("op", a=line)
