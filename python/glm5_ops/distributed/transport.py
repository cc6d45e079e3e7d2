"""Rows between ranks: the one thing that expert parallelism needs of a network.

``Transport`` is the door for another engine: DeepEP's buffers, symmetric memory, a test's own. Counts are rows per
rank, in rank order, as DeepEP's prefix sums have them.
"""

from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Pending(Protocol):
    def wait(self) -> Tensor:
        """The received rows, those of rank 0 first."""


class Transport(Protocol):
    rank: int
    ranks: int

    def exchange_counts(self, counts: Tensor) -> Tensor:
        """i64[ranks], what this rank sends to each, becomes i64[ranks], what each sends to this one; on the CPU."""

    def exchange(self, what: str, rows: Tensor, send: list[int], receive: list[int]) -> Pending:
        """Start to send ``send[r]`` rows to every rank r, in order. `what` is for messages."""


class Arrived:
    """Rows that are here already."""

    def __init__(self, rows: Tensor):
        self.rows = rows

    def wait(self) -> Tensor:
        return self.rows


class TorchTransport:
    """``torch.distributed.all_to_all_single``: NCCL between GPUs, Gloo between processors.

    Args:
        group: the ranks; None for all. Without an initialised process group there is one rank, this process.
        timeout: seconds after which waiting ends in an error that says so; None for the group's own.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout: float | None = None):
        self.group, self.timeout = group, timeout
        self.is_alone = not (dist.is_available() and dist.is_initialized())
        self.rank = 0 if self.is_alone else dist.get_rank(group)
        self.ranks = 1 if self.is_alone else dist.get_world_size(group)

    def exchange_counts(self, counts: Tensor) -> Tensor:
        if self.ranks == 1:
            return counts.cpu()
        received = torch.empty_like(counts)
        self._finished("counts", lambda: dist.all_to_all_single(received, counts, group=self.group, async_op=True))
        return received.cpu()

    def exchange(self, what: str, rows: Tensor, send: list[int], receive: list[int]) -> Pending:
        if self.ranks == 1:
            return Arrived(rows)
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        if rows.numel() == 0 and received.numel() == 0 and rows.shape[1:].numel() == 0:
            return Arrived(received)
        sent = rows.contiguous()
        work = self._started(
            what, lambda: dist.all_to_all_single(_bytes(received), _bytes(sent), receive, send, self.group, True)
        )
        return _Pending(self, what, work, received, sent)

    def _started(self, what: str, start):
        try:
            return start()
        except RuntimeError as error:
            raise self._failure(what, error) from error

    def _finished(self, what: str, start) -> None:
        self._wait(what, self._started(what, start))

    def _wait(self, what: str, work: dist.Work) -> None:
        try:
            work.wait() if self.timeout is None else work.wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:
            raise self._failure(what, error) from error

    def _failure(self, what: str, error: RuntimeError) -> RuntimeError:
        limit = "its process group's limit" if self.timeout is None else f"{self.timeout:g} s"
        return RuntimeError(
            f"expert_parallel: the exchange of {what} did not come to its end on rank {self.rank} of {self.ranks}: "
            f"another rank is gone, did not call the layer, or took longer than {limit} ({error})"
        )


class _Pending:
    def __init__(self, transport: TorchTransport, what: str, work: dist.Work, received: Tensor, sent: Tensor):
        self.transport, self.what, self.work, self.received = transport, what, work, received
        self.sent = sent  # must live until the work is done

    def wait(self) -> Tensor:
        self.transport._wait(self.what, self.work)
        self.sent = None
        return self.received


def _bytes(rows: Tensor) -> Tensor:
    return rows.view(torch.uint8) if rows.dim() > 1 else rows[:, None].view(torch.uint8)
