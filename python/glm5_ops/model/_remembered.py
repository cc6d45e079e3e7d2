"""What is made of a parameter and kept until the parameter changes."""

import weakref
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class _OptimizerSteps:
    """How many steps the optimizers of this process have taken. Fused ones change a parameter, but not its version."""

    taken = 0

    @classmethod
    def count(cls, *_: object) -> None:
        cls.taken += 1


register_optimizer_step_post_hook(_OptimizerSteps.count)


class Remembered:
    """One value made of one parameter, and of options that are compared too.

    Optimizer steps, ``load_state_dict``, ``to()`` and in-place operations are noticed; a write through ``.data`` or a
    NumPy view is not. Nothing is kept of a parameter made under ``torch.inference_mode``, which counts no versions.
    """

    def __init__(self):
        self._kept: tuple | None = None

    def get(self, parameter: nn.Parameter, *options: object) -> Any | None:
        """The value, if it was made of the parameter as it is now."""
        if self._kept is None:
            return None
        of, state, value = self._kept
        return value if of() is parameter and state == self._state(parameter, options) else None

    def keep(self, value: Any, parameter: nn.Parameter, *options: object) -> None:
        if not parameter.is_inference():
            self._kept = weakref.ref(parameter), self._state(parameter, options), value

    def forget(self) -> None:
        self._kept = None

    @staticmethod
    def _state(parameter: nn.Parameter, options: tuple) -> tuple:
        steps = _OptimizerSteps.taken if parameter.requires_grad else 0
        return parameter._version, steps, parameter.data_ptr(), parameter.dtype, options
