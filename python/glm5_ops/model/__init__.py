"""The parts of a GLM-5-style model; they know the surface of :mod:`glm5_ops`, or of its reference, nothing below."""

from glm5_ops.model.linear import Fp8Linear

__all__ = ["Fp8Linear"]
