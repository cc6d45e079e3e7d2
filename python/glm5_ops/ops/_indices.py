"""What ``check_indices`` asks of windows, block tables, slots and positions, with torch's operations, on any device.

The CPU kernels ask the same at every call (csrc/core/window_check.h, cache_check.h); on a GPU each question waits for
the device.
"""

import torch
from torch import Tensor

PAGE = 64


def check_windows(op: str, windows: Tensor, keys: int) -> None:
    """Refuse a window that is no range within the keys.

    Raises:
        ValueError: a sentence with the first row at fault.
    """
    start, end = windows.unbind(1)
    row = _first((start < 0) | (start > end) | (end > keys))
    if row is not None:
        raise ValueError(
            f"{op}: windows[{row}] must be a range within the {keys} keys; got [{int(start[row])}, {int(end[row])}]"
        )


def check_block_table(
    op: str, block_table: Tensor, sequences: Tensor, windows: Tensor | None, keys: int, pages: int | None = None
) -> None:
    """Refuse a sequence that the table lacks, a window beyond its pages, and entries that are no pages of the cache.

    Only the entries that a window uses are looked at. Without ``windows`` every row uses all keys; without ``pages`` an
    entry need only be 0 or more.

    Raises:
        ValueError: a sentence with the first row at fault.
    """
    count, columns = block_table.shape
    row = _first((sequences < 0) | (sequences >= count))
    if row is not None:
        got = int(sequences[row])
        raise ValueError(f"{op}: sequences[{row}] must be a row of block_table, which has {count}; got {got}")
    whole = torch.tensor([[0, keys]], device=block_table.device)
    start, end = (whole.expand(len(sequences), 2) if windows is None else windows).long().unbind(1)
    row = _first((start < end) & (end > columns * PAGE))
    if row is not None:
        raise ValueError(
            f"{op}: the window of row {row} must end within the {columns} pages of block_table; "
            f"got [{int(start[row])}, {int(end[row])}]"
        )
    entries = block_table[sequences.long()].long()
    page = torch.arange(columns, device=block_table.device)
    used = (page * PAGE < end[:, None]) & ((page + 1) * PAGE > start[:, None]) & (start < end)[:, None]
    bad = used & ((entries < 0) | (entries >= (2**31 if pages is None else pages)))
    row = _first(bad.any(dim=1))
    if row is not None:
        column = _first(bad[row])
        raise ValueError(
            f"{op}: block_table[{int(sequences[row])}, {column}] must be a page of the cache, since the window of row "
            f"{row} uses it; got {int(entries[row, column])}"
        )


def check_used_pages(
    op: str, indices: Tensor, topk_length: Tensor | None, block_table: Tensor, sequences: Tensor, pages: int
) -> None:
    """Refuse a sequence that the table lacks, and entries that an index uses and that are no pages of the cache.

    Raises:
        ValueError: a sentence with the first row at fault.
    """
    count, columns = block_table.shape
    row = _first((sequences < 0) | (sequences >= count))
    if row is not None:
        got = int(sequences[row])
        raise ValueError(f"{op}: sequences[{row}] must be a row of block_table, which has {count}; got {got}")
    column = torch.where(indices < 0, columns, indices // PAGE)
    used = column < columns
    if topk_length is not None:
        used &= torch.arange(indices.shape[1], device=indices.device) < topk_length[:, None]
    entries = block_table[sequences.long()].gather(1, torch.where(used, column, 0).long()) if columns else column
    bad = used & ((entries < 0) | (entries >= pages))
    row = _first(bad.any(dim=1))
    if row is not None:
        j = _first(bad[row])
        raise ValueError(
            f"{op}: block_table[{int(sequences[row])}, {int(column[row, j])}] must be a page of the cache, since "
            f"indices[{row}, {j}] uses it; got {int(entries[row, j])}"
        )


def check_cache_slots(op: str, cache_slots: Tensor, slots: int) -> None:
    """Refuse what is neither -1 nor a slot of the cache.

    Raises:
        ValueError: a sentence with the first one at fault.
    """
    row = _first((cache_slots < -1) | (cache_slots >= slots))
    if row is not None:
        raise ValueError(
            f"{op}: cache_slots must be -1 or a slot of the cache, 0 .. {slots - 1}; "
            f"cache_slots[{row}] is {int(cache_slots[row])}"
        )


def check_positions(op: str, positions: Tensor, rows: int) -> None:
    """Refuse a position that cos_sin lacks.

    Raises:
        ValueError: a sentence with the first one at fault.
    """
    row = _first((positions < 0) | (positions >= rows))
    if row is not None:
        raise ValueError(
            f"{op}: positions must be rows of cos_sin, 0 .. {rows - 1}; positions[{row}] is {int(positions[row])}"
        )


def check_named_once(op: str, slots: Tensor, rows: int) -> None:
    """Refuse slots of which two name the same row.

    Raises:
        ValueError: a sentence with the first such row.
    """
    named = slots[(slots >= 0) & (slots < rows)].long()
    row = _first(torch.bincount(named, minlength=1) > 1)
    if row is not None:
        places = (slots == row).nonzero()[:2].tolist()
        raise ValueError(f"{op}: slots must name a row once; row {row} is named at {places[0]} and {places[1]}")


def check_offsets(op: str, offsets: Tensor, rows: int) -> None:
    """Refuse offsets that do not ascend within the rows.

    Raises:
        ValueError: a sentence with the first one at fault.
    """
    before = torch.cat([offsets.new_zeros(1), offsets[:-1]])
    e = _first((offsets < before) | (offsets > rows))
    if e is not None:
        raise ValueError(
            f"{op}: offsets must ascend within 0 .. {rows}; offsets[{e}] is {int(offsets[e])} after {int(before[e])}"
        )


def check_counts(op: str, counts: Tensor, rows: int) -> None:
    """Refuse counts beyond the rows that each expert has.

    Raises:
        ValueError: a sentence with the first one at fault.
    """
    e = _first((counts < 0) | (counts > rows))
    if e is not None:
        raise ValueError(f"{op}: counts must be 0 .. {rows}; counts[{e}] is {int(counts[e])}")


def check_row_tokens(op: str, row_tokens: Tensor, offsets: Tensor, tokens: int) -> None:
    """Refuse a row of an expert that is made of no token.

    Raises:
        ValueError: a sentence with the first one at fault.
    """
    row = torch.arange(len(row_tokens), device=row_tokens.device)
    bad = (row_tokens < 0) | (row_tokens >= tokens)
    r = _first(bad & (row >= offsets[0]) & (row < offsets[-1]))
    if r is not None:
        raise ValueError(
            f"{op}: row_tokens must be rows of rows, 0 .. {tokens - 1}; row_tokens[{r}] is {int(row_tokens[r])}"
        )


def _first(bad: Tensor) -> int | None:
    return int(bad.int().argmax()) if bool(bad.any()) else None
