"""Expert parallelism: tokens travel to the ranks of their experts, what these give travels back.

A token travels once to every rank that has experts of it, with the ids it has there (-1 elsewhere); in FP8 with its
scales. Answers and gradients travel as one bf16 row per (token, expert), not added up: the token's own rank adds them,
k ascending. That costs traffic and is what makes every number the same on 1, 2 or 4 ranks: experts see rows in the
order of ranks, then of tokens, as on one rank that has all tokens, one rank's after the other's.
"""

import types

import torch
import torch.distributed as dist
from torch import Tensor

from glm5_ops.distributed.transport import TorchTransport, Transport


class ExpertParallel:
    """The experts of a layer are spread over the ranks of a group: rank r has the r-th equal share of them.

    Give it to :class:`glm5_ops.model.experts.Experts`. Every rank calls the layer, forward and backward, in the same
    order, with as many tokens as it likes, none included. A rank that is gone or late ends the call in an error.

    Args:
        group: the ranks; None for all of them, or this process alone where no process group is initialised.
        timeout: seconds that an exchange may take; None for the group's own limit.
        transport: what carries the rows, instead of ``torch.distributed``.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        timeout: float | None = None,
        transport: Transport | None = None,
    ):
        self.transport = TorchTransport(group, timeout) if transport is None else transport

    @property
    def ranks(self) -> int:
        return self.transport.ranks

    @property
    def rank(self) -> int:
        return self.transport.rank

    def route(self, ops: types.ModuleType, ids: Tensor, experts: int) -> "ParallelRoute":
        """The way of rows for ids i32[tokens, topk] of ``experts`` in all (``model.experts.Route``)."""
        return ParallelRoute(self.transport, ops, ids, experts)


class ParallelRoute:
    """Sent rows lie in order of ranks, then of tokens; their answers in the order of (sent row, k)."""

    def __init__(self, transport: Transport, ops: types.ModuleType, ids: Tensor, experts: int):
        self.transport, self.ops = transport, ops
        self.local_experts = experts // transport.ranks
        owners = torch.where((ids >= 0) & (ids < experts), ids // max(1, self.local_experts), -1)
        ranks = torch.arange(transport.ranks, device=ids.device)
        goes = (owners[None] == ranks[:, None, None]).any(2)  # [ranks, tokens]
        self.to, self.tokens = goes.nonzero(as_tuple=True)
        here = owners[self.tokens] == self.to[:, None]  # [sent rows, topk]
        self.sent_ids = torch.where(here, ids[self.tokens] - self.to[:, None] * self.local_experts, -1).int()
        self.slots = self._slots_of_answers(ids, here)
        self.send = torch.stack([goes.sum(1), self._per_rank(here.sum(1))], 1)  # rows, answers
        self.send_rows, self.send_answers = self.send.cpu().T.tolist()

    def _per_rank(self, numbers: Tensor) -> Tensor:
        sums = numbers.new_zeros(self.transport.ranks)
        return sums.index_add_(0, self.to, numbers)

    def _slots_of_answers(self, ids: Tensor, here: Tensor) -> Tensor:
        """i32[tokens, topk]: where the answer to (token, k) will lie."""
        places = here.flatten().cumsum(0).view(here.shape) - 1
        slots = torch.full(ids.shape, -1, dtype=torch.int32, device=ids.device)
        row, k = here.nonzero(as_tuple=True)
        slots[self.tokens[row], k] = places[row, k].int()
        return slots

    # There

    def begin(self, x: Tensor, scales: Tensor | None) -> None:
        counts = self.transport.exchange_counts(self.send.flatten()).view(-1, 2)
        self.receive_rows, self.receive_answers = counts.T.tolist()
        self.ids_under_way = self._exchange("ids", self.sent_ids)
        self.rows_under_way = self._exchange("rows", x.view(torch.uint8)[self.tokens])
        self.dtype, self.width = x.dtype, x.shape[1]
        self.scales_under_way = None if scales is None else self._exchange("scales", scales[self.tokens])

    def _exchange(self, what: str, rows: Tensor):
        return self.transport.exchange(what, rows, self.send_rows, self.receive_rows)

    def receive(self) -> tuple[Tensor, Tensor | None]:
        ids = self.ids_under_way.wait()
        x = self.rows_under_way.wait().view(self.dtype).view(-1, self.width)
        scales = None if self.scales_under_way is None else _columns(self.scales_under_way.wait())
        rows, row_scales, slots, self.offsets, _ = self.ops.moe_dispatch(x, ids, self.local_experts, 0, scales)
        self.answered = slots[slots >= 0].long()  # in the order of (received row, k)
        del self.ids_under_way, self.rows_under_way, self.scales_under_way
        return rows, None if scales is None else row_scales

    # And back

    def answer(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._home("answers", y), self.slots

    def row_gradient(self, d_rows: Tensor) -> tuple[Tensor, Tensor]:
        return self._home("gradients of rows", d_rows), self.slots

    def _home(self, what: str, rows: Tensor) -> Tensor:
        return self.transport.exchange(what, rows[self.answered], self.receive_answers, self.send_answers).wait()

    def answer_gradient(self, d_answers: Tensor) -> Tensor:
        arrived = self.transport.exchange("gradients of answers", d_answers, self.send_answers, self.receive_answers)
        d_y = d_answers.new_zeros(sum(self.receive_rows) * self.slots.shape[1], d_answers.shape[1])
        d_y[self.answered] = arrived.wait()
        return d_y


def _columns(scales: Tensor) -> Tensor:
    """The layout of 1x128 scales: column-major, rows padded to 4."""
    rows, groups = scales.shape
    padded = scales.new_zeros(groups, -(-rows // 4) * 4)
    padded[:, :rows] = scales.T
    return padded[:, :rows].T
