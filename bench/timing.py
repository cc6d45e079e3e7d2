"""How a call is timed: contenders take turns, on inputs that no cache holds, and the clock runs during the call alone.

Taking turns spreads a change of the machine's clock over all contenders. On a CPU caches are cold because many copies
of the inputs are used in rotation, and results go to memory that the process has already, as in a program that runs
for long (``kept_memory``); on a GPU a buffer larger than its L2 is read before the clock starts.
"""

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FEWEST_ROUNDS, MOST_ROUNDS = 7, 300
FEWEST_SLOW_ROUNDS = 3  # where these alone take several times the time that was aimed for
MOST_SET_BYTES = 4 << 30  # of all copies of the inputs together
MOST_SETS = 256
KEPT_BYTES = 512 << 20


@dataclass(frozen=True)
class Prepared:
    """A baseline with work that is not timed: ``prepare(**inputs)`` returns the call that is,
    or None where it leaves the case out."""

    prepare: Callable[..., Callable[[], object] | None]

    def call(self, inputs: dict) -> Callable[[], object] | None:
        return self.prepare(**inputs)


def copy_of_the_same_bytes(reference: Callable) -> Prepared:
    """A baseline: as many bytes as the op reads and writes, half read and half written, into memory that is there.

    The op makes new tensors, so this is the stricter measure, if only by a little where memory is kept.
    """

    def prepare(**inputs) -> Callable[[], object]:
        outputs = reference(**inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        tensors = [t for t in (*inputs.values(), *outputs) if isinstance(t, Tensor)]
        half = (sum(t.numel() * t.element_size() for t in tensors) + 1) // 2
        source = torch.zeros(half, dtype=torch.uint8, device=outputs[0].device)
        return functools.partial(torch.empty_like(source).fill_(1).copy_, source)

    return Prepared(prepare)


def bound(contender: Callable | Prepared, inputs: dict) -> Callable[[], object] | None:
    """The call to time, or None."""
    return contender.call(inputs) if isinstance(contender, Prepared) else functools.partial(contender, **inputs)


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, the C library has 512 MiB of memory at hand and returns none to the system, if it is glibc.

    By default it returns large tensors at once, and the next one of 50 MB waits for 12,000 new pages: on some machines
    many times what an op needs to fill it. The memory at hand is larger than any tensor by far: a piece of just a
    tensor's size, with something small behind it, would be too small to be aligned for the next one.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    trim_threshold, mmap_max = -1, -4  # names of options in malloc.h
    library.mallopt(mmap_max, 0)
    library.mallopt(trim_threshold, -1)  # as an unsigned number, more than there is
    try:
        torch.empty(KEPT_BYTES, dtype=torch.uint8).fill_(1)
        yield
    finally:
        library.mallopt(mmap_max, 1 << 16)
        library.mallopt(trim_threshold, 128 << 10)
        library.malloc_trim(0)


class CpuClock:
    """Microseconds of one call."""

    def __call__(self, call: Callable[[], object]) -> float:
        begin = time.perf_counter_ns()
        result = call()
        end = time.perf_counter_ns()
        del result  # giving memory back is not part of the call
        return (end - begin) / 1e3


class BusyClock:
    """Microseconds that the process computed during one call, per thread: what others take of the machine is no part
    of it. Threads that wait must not compute (OMP_WAIT_POLICY=passive)."""

    def __call__(self, call: Callable[[], object]) -> float:
        begin = time.process_time_ns()
        result = call()
        end = time.process_time_ns()
        del result
        return (end - begin) / 1e3 / torch.get_num_threads()


class CudaClock:
    """Microseconds of one call on the current stream. The read before it empties L2, and lets the CPU run ahead."""

    def __init__(self):
        self._flush = torch.ones(2 * cache_bytes("cuda") // 4, dtype=torch.int32, device="cuda")
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Callable[[], object]) -> float:
        torch.sum(self._flush)  # reads: a write would leave L2 to be written back during the call
        self._begin.record()
        call()
        self._end.record()
        torch.cuda.synchronize()  # the whole device, so that no stream's work reaches into the next contender's turn
        return self._begin.elapsed_time(self._end) * 1e3


def cache_bytes(device: str) -> int:
    """The size of the last cache before memory."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(sizes, default=32 << 20)


def count_sets(set_bytes: int, cache: int) -> int:
    """So many copies that between two uses of one, twice the cache's size of others is read; at least two."""
    wanted = 1 + -(-2 * cache // max(1, set_bytes))
    return max(2, min(wanted, MOST_SETS, MOST_SET_BYTES // max(1, set_bytes)))


def input_sets(inputs: dict, device: str) -> list[dict]:
    """The inputs, and copies of them in other memory with the same strides."""
    set_bytes = sum(v.numel() * v.element_size() for v in inputs.values() if isinstance(v, Tensor))
    count = count_sets(set_bytes, cache_bytes(device) if device == "cpu" else 0)
    return [inputs, *({n: _copy(v) for n, v in inputs.items()} for _ in range(count - 1))]


def _copy(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).copy_(value)


def quantile(samples: list[float], fraction: float) -> float:
    """Between the two nearest samples, linearly."""
    ordered = sorted(samples)
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def interleave(
    contenders: dict[str, list[Callable[[], object]]], clock: Callable[[Callable], float], seconds: float
) -> dict[str, list[float]]:
    """Microseconds of every call, by contender.

    Args:
        contenders: each one's calls, one for every set of inputs.
        clock: times one call.
        seconds: the timed work to aim for.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names, turn, spent = list(contenders), 0, 0.0
    for round_index in range(-2, MOST_ROUNDS):  # two rounds to warm up
        for i in range(len(names)):
            # Another contender begins each round: none always follows the same neighbour.
            name = names[(i + round_index) % len(names)]
            calls = contenders[name]
            microseconds = clock(calls[turn % len(calls)])
            turn += 1
            if round_index >= 0:
                samples[name].append(microseconds)
                spent += microseconds / 1e6
        if _enough(round_index + 1, spent / seconds if seconds else 1.0):
            break
    return samples


def _enough(rounds: int, share: float) -> bool:
    """`share` is the time spent, in units of the time to aim for."""
    return (rounds >= FEWEST_ROUNDS and share >= 1) or (rounds >= FEWEST_SLOW_ROUNDS and share >= 8)


def drift(samples: list[float]) -> float:
    """How much the second half of the samples differs from the first, relatively: a clock or a neighbour changed."""
    half = len(samples) // 2
    return quantile(samples[half:], 0.5) / quantile(samples[:half], 0.5) - 1
