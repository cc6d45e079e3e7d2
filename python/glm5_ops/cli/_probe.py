"""What doctor runs in a child process, where a crash does no harm: stages, with a line of JSON around each.

It runs as ``python -c <this text> <folder>``; the folder is the one that holds glm5_ops.
"""

import ctypes
import json
import sys


def look_at_torch() -> dict:
    import torch

    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cuda_available": torch.cuda.is_available(),
        "threads": torch.get_num_threads(),
        "exchange_api": hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
    }


def look_at_native() -> dict:
    import glm5_ops._native as native

    names = native.isa_names()
    found = {
        name: getattr(native, name)
        for name in ("with_cuda", "cuda_version", "cutlass_version", "compiler", "build_type")
    }
    found["file"] = native.__file__
    found["kernel_files"] = getattr(native, "kernel_files", None)
    return found | {"detected_isa": names[native.detected_isa()], "isas": names, "threads": native.thread_count()}


def look_at_threads() -> dict:
    """Whether a change of torch's threads is a change of ours: then both use one OpenMP runtime."""
    import torch

    import glm5_ops._native as native

    seen = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        seen.append(native.thread_count())
    return {"shared": seen == [1, 2, 3]}


def look_at_ops() -> dict:
    from glm5_ops.cli._choice import has_backward, stem_of
    from glm5_ops.ops._op import OPS

    return {op: {"stem": stem_of(op), "backward": has_backward(op)} for op in OPS}


def look_at_gpu() -> dict:
    """By the driver's own library, so that it works without torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"driver": False}
    status = driver.cuInit(0)
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    found = {"driver": True, "status": status, "cuda": [version.value // 1000, version.value % 1000 // 10], "gpus": []}
    if status == 0:
        driver.cuDeviceGetCount(ctypes.byref(count))
    major_attribute, minor_attribute = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
    for index in range(count.value):
        name, device, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, 256, device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), major_attribute, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), minor_attribute, device)
        found["gpus"].append({"name": name.value.decode(), "architecture": [major.value, minor.value]})
    return found


STAGES = {
    "gpu": look_at_gpu,
    "torch": look_at_torch,
    "native": look_at_native,
    "ops": look_at_ops,
    "threads": look_at_threads,
}

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    for stage, look in STAGES.items():
        print(json.dumps({"stage": stage}), flush=True)
        try:
            result = look()
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"stage": stage, "result": result}), flush=True)
