"""Two libraries, one surface: every op and its reference have the same name and signature."""

import inspect

import pytest
import torch

import glm5_ops
from glm5_ops import ops, reference
from glm5_ops.ops._op import OPS, _refuse_cuda
from glm5_ops.workloads import all_workloads


def test_the_same_names():
    assert sorted(ops.__all__) == sorted(reference.__all__) == sorted(OPS) == sorted(all_workloads())
    assert set(ops.__all__) <= set(glm5_ops.__all__)


@pytest.mark.parametrize("name", ops.__all__)
def test_the_same_signature(name):
    assert inspect.signature(getattr(glm5_ops, name)) == inspect.signature(getattr(reference, name))


@pytest.mark.parametrize("name", ops.__all__)
def test_the_op_is_an_operator_of_torch_and_documents_itself(name):
    operator = getattr(glm5_ops, name)
    assert operator is getattr(torch.ops.glm5_ops, name).default
    assert operator.__doc__ and "Args:" in operator.__doc__
    documented = operator.__doc__
    for parameter in inspect.signature(operator).parameters:
        assert parameter in documented, f"{name} does not document {parameter}"


def test_a_cuda_tensor_in_a_build_without_cuda_is_answered_with_a_sentence():
    with pytest.raises(ValueError, match="fp8_gemm: the tensors must be on the CPU, because this build of"):
        _refuse_cuda("fp8_gemm")(torch.zeros(1))
