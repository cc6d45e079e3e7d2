"""The guest's memory is this process's memory: page tables that map a virtual address to the same address here.

Pages are mapped when the guest first touches them, with the permissions that /proc/self/maps gives them.
"""

import bisect
import ctypes
import mmap
from dataclasses import dataclass

PAGE = 4096
PRESENT, WRITABLE, USER, NO_EXECUTE = 1, 2, 4, 1 << 63
FAULT_AROUND = 16  # pages mapped at one fault: a trap costs more than an entry
_TABLES = 4096  # a last-level table maps 2 MiB
_Table = ctypes.c_uint64 * 512


@dataclass(frozen=True)
class Region:
    begin: int
    end: int
    permissions: str

    @property
    def flags(self) -> int:
        return (
            PRESENT
            | USER
            | (WRITABLE if self.permissions[1] == "w" else 0)
            | (0 if self.permissions[2] == "x" else NO_EXECUTE)
        )


def anonymous_pages(count: int) -> int:
    """The address of fresh zeroed pages, never given back."""
    pages = mmap.mmap(-1, count * PAGE)
    _kept.append(pages)
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))


_kept: list[mmap.mmap] = []


def parse_regions(text: str) -> list[Region]:
    regions = []
    for line in text.splitlines():
        addresses, permissions, _ = line.split(" ", 2)
        begin, end = (int(word, 16) for word in addresses.split("-"))
        regions.append(Region(begin, end, permissions))
    return regions


class Memory:
    def __init__(self, core: ctypes.CDLL):
        self.core = core
        self.system_pages: list[tuple[int, int]] = []
        self.regions: list[Region] = []
        self._begins: list[int] = []
        self._text = ""
        self._physical: dict[int, int] = {}
        self._code: list[int] = []
        self._code_entries: list[tuple[ctypes.Array, int]] = []
        self._used = 0
        self._next_physical = PAGE
        self._pool = anonymous_pages(_TABLES)
        self._pool_physical = [self._insert(self._pool + i * PAGE) for i in range(_TABLES)]
        self.root = self._pool_physical[0]
        self._clear()

    def add_system_page(self, address: int, flags: int) -> None:
        """A page of the guest's own system, mapped always."""
        self.system_pages.append((address, flags))
        self._map(address, flags)

    def refresh(self) -> None:
        """Reads the process's mappings again; forgets every page of the guest if any of them changed."""
        self._forget_code()
        with open("/proc/self/maps") as maps:
            text = maps.read()
        if text == self._text:
            return
        self._text, self.regions = text, parse_regions(text)
        self._begins = [region.begin for region in self.regions]
        self._clear()
        for address, flags in self.system_pages:
            self._map(address, flags)

    def region_at(self, address: int) -> Region | None:
        i = bisect.bisect_right(self._begins, address) - 1
        return self.regions[i] if i >= 0 and address < self.regions[i].end else None

    def allows(self, address: int, size: int, write: bool) -> bool:
        end = address + size
        while address < end:
            region = self.region_at(address)
            if region is None or region.permissions[0] != "r" or (write and region.permissions[1] != "w"):
                return False
            address = region.end
        return True

    def map_touched(self, address: int) -> bool:
        """Maps the page of `address` and some after it; False where the process has no readable page there."""
        region = self.region_at(address)
        if region is None or region.permissions[0] != "r":
            return False
        first = address & -PAGE
        for page in range(first, min(first + FAULT_AROUND * PAGE, region.end), PAGE):
            self._map(page, region.flags)
        return True

    def _clear(self) -> None:
        ctypes.memset(self._pool, 0, self._used * PAGE)
        self._used = 1
        self._tables = {self.root: _Table.from_address(self._pool)}

    def _insert(self, address: int) -> int:
        physical, self._next_physical = self._next_physical, self._next_physical + PAGE
        self.core.bochscpu_mem_page_insert(physical, address)
        return physical

    def _physical_page(self, page: int, executable: bool) -> int:
        if executable:
            self._code.append(self._insert(page))
            return self._code[-1]
        if page not in self._physical:
            self._physical[page] = self._insert(page)
        return self._physical[page]

    def _forget_code(self) -> None:
        """The core keeps decoded instructions by physical address, so code, which may change, never gets one twice."""
        for physical in self._code:
            self.core.bochscpu_mem_page_remove(physical)
        for table, slot in self._code_entries:
            table[slot] = 0
        self._code, self._code_entries = [], []

    def _map(self, page: int, flags: int) -> None:
        table = self._tables[self.root]
        for shift in (39, 30, 21):
            slot = (page >> shift) & 511
            if not table[slot]:
                table[slot] = self._new_table() | PRESENT | WRITABLE | USER
            table = self._tables[table[slot] & -PAGE]
        slot = (page >> 12) & 511
        if table[slot]:
            return
        executable = not flags & NO_EXECUTE and bool(flags & USER)
        table[slot] = self._physical_page(page, executable) | flags
        if executable:
            self._code_entries.append((table, slot))

    def _new_table(self) -> int:
        if self._used == _TABLES:
            raise MemoryError("a kernel touched more memory than the interpreter has page tables for")
        physical = self._pool_physical[self._used]
        self._tables[physical] = _Table.from_address(self._pool + self._used * PAGE)
        self._used += 1
        return physical
