"""The C interface of the Bochs processor core inside the wheel of `bochscpu-python`, by ctypes.

The wheel's Python interface holds the interpreter lock while the guest runs and calls C++ for every instruction; its C
interface, exported by the same shared object, does neither. So the object is opened as a plain library.
"""

import ctypes
import functools
import glob
import importlib.metadata
import importlib.util
import os
import platform
import sys
from ctypes import c_char_p, c_int, c_uint16, c_uint32, c_uint64, c_void_p

PACKAGE = "bochscpu-python"
# The layouts below are this version's, and so is the processor: Cannon Lake, the least one that has what our AVX-512
# kernels want (F, CD, DQ, BW, VL, IFMA, VBMI). What they must not use, such as VNNI and BF16, is an invalid opcode.
VERSIONS = ("0.4.0",)

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
ES, CS, SS, DS, FS, GS = range(6)
INVLPG = 15  # what the hook `tlb_cntrl` is told for that instruction


_HOOKS = (
    "ctx", "reset", "hlt", "mwait", "cnear_branch_taken", "cnear_branch_not_taken", "ucnear_branch", "far_branch",
    "opcode", "interrupt", "exception", "hw_interrupt", "tlb_cntrl", "cache_cntrl", "prefetch_hint", "clflush",
    "before_execution", "after_execution", "repeat_iteration", "inp", "inp2", "outp", "lin_access", "phy_access",
    "wrmsr", "vmexit",
)  # fmt: skip


class Hooks(ctypes.Structure):
    """Functions that the core calls; null where none is wanted."""

    _fields_ = [(name, c_void_p) for name in _HOOKS]


HltHook = ctypes.CFUNCTYPE(None, c_void_p, c_uint32)
TlbHook = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_uint32, c_uint64)
MissingPage = ctypes.CFUNCTYPE(None, c_uint64)

_NUMBER = c_uint32  # every function below whose name starts with cpu_ takes the processor's number first
_SEGMENT = (c_uint32, c_uint16, c_uint64, c_uint32, c_uint16)  # present, selector, base, limit, attributes
_FUNCTIONS = {
    "bochscpu_mem_page_insert": (None, c_uint64, c_void_p),
    "bochscpu_mem_page_remove": (None, c_uint64),
    "bochscpu_mem_missing_page": (None, MissingPage),
    "bochscpu_cpu_new": (c_void_p, c_uint32),
    "bochscpu_cpu_run": (None, c_void_p, c_void_p),
    "bochscpu_cpu_stop": (None, c_void_p),
    "bochscpu_cpu_set_rip": (None, c_void_p, c_uint64),
    "bochscpu_cpu_set_rsp": (None, c_void_p, c_uint64),
    "cpu_get_pc": (c_uint64, _NUMBER),
    "cpu_get_cr2": (c_uint64, _NUMBER),
    "cpu_get_reg64": (c_uint64, _NUMBER, c_uint32),
    "cpu_set_reg64": (None, _NUMBER, c_uint32, c_uint64),
    "cpu_set_seg": (None, _NUMBER, c_uint32, *_SEGMENT),
    "cpu_set_tr": (None, _NUMBER, *_SEGMENT),
    "cpu_set_gdtr": (None, _NUMBER, c_uint64, c_uint16),
    "cpu_set_idtr": (None, _NUMBER, c_uint64, c_uint16),
    "cpu_set_cr0": (None, _NUMBER, c_uint32),
    "cpu_set_cr3": (None, _NUMBER, c_uint64),
    "cpu_set_cr4": (None, _NUMBER, c_uint32),
    "cpu_set_efer": (None, _NUMBER, c_uint32),
    "cpu_set_xcr0": (None, _NUMBER, c_uint32),
    "cpu_set_eflags": (None, _NUMBER, c_uint32),
    "cpu_set_mxcsr": (None, _NUMBER, c_uint32),
    "cpu_set_fp_cw": (None, _NUMBER, c_uint16),
    "cpu_set_fp_tw": (None, _NUMBER, c_uint16),
    "cpu_set_mode": (None, _NUMBER),
}


def shared_object() -> str | None:
    spec = importlib.util.find_spec("bochscpu")
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () for path in glob.glob(os.path.join(folder, "_bochscpu*.so"))]
    return found[0] if found else None


def reason_against() -> str | None:
    """Why the core cannot be loaded here, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the interpreter runs on Linux on x86-64 only"
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f"{PACKAGE} is not installed"
    if version not in VERSIONS:
        return f"{PACKAGE} {version} is installed; the interpreter knows {', '.join(VERSIONS)}"
    return None if shared_object() else f"{PACKAGE} is installed without its shared object"


@functools.cache
def open_core() -> ctypes.CDLL:
    path = shared_object()
    process = ctypes.CDLL(None)
    process.dlopen.restype, process.dlopen.argtypes = c_void_p, (c_char_p, c_int)
    process.dlerror.restype = c_char_p
    # Lazily: the wheel names two functions of glibc 2.38 that nothing here calls, and older systems lack them. CDLL
    # itself always binds at once.
    handle = process.dlopen(os.fsencode(path), os.RTLD_LAZY | os.RTLD_LOCAL)
    if not handle:
        raise OSError(process.dlerror().decode())
    library = ctypes.CDLL(path, handle=handle)
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
