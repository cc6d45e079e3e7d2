"""Integer instructions against values computed in Python."""

import numpy as np
import pytest

from tests.emulator.device import Fault
from tests.emulator.ptx import elementwise

RANDOM = np.random.default_rng(1)
TYPES = {"u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64}


def values(dtype: np.dtype, count: int = 256, small: bool = False) -> np.ndarray:
    info = np.iinfo(dtype)
    made = RANDOM.integers(info.min, info.max, count, dtype=dtype, endpoint=True)
    edges = np.array([0, 1, info.max, info.min, info.max - 1, 2, 31, 32], dtype=dtype)
    made[: len(edges)] = edges
    made[len(edges) : 2 * len(edges)] = RANDOM.permutation(edges)
    return RANDOM.permutation(made)


def wrap(value: int, dtype: np.dtype) -> int:
    bits = np.iinfo(dtype).bits
    value &= (1 << bits) - 1
    return value - (1 << bits) if np.iinfo(dtype).min < 0 and value >> (bits - 1) else value


def check(instruction: str, out: np.dtype, function, *sources: np.ndarray) -> None:
    got = elementwise(instruction, out, *sources)
    expected = np.array([wrap(function(*(int(s[i]) for s in sources)), out) for i in range(len(sources[0]))], dtype=out)
    np.testing.assert_array_equal(got, expected)


def divide(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a if b == 0 else a - b * divide(a, b)


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "div": divide,
    "rem": remainder,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("op", BINARY)
def test_two_sources(op, name):
    check(f"{op}.{name} {{d}}, {{a}}, {{b}};", TYPES[name], BINARY[op], values(TYPES[name]), values(TYPES[name]))


@pytest.mark.parametrize("name", ["u32", "s32", "u64", "s64", "s16"])
def test_high_half_and_multiply_add(name):
    dtype = TYPES[name]
    bits = np.iinfo(dtype).bits
    a, b, c = values(dtype), values(dtype), values(dtype)
    check(f"mul.hi.{name} {{d}}, {{a}}, {{b}};", dtype, lambda x, y: x * y >> bits, a, b)
    check(f"mad.lo.{name} {{d}}, {{a}}, {{b}}, {{c}};", dtype, lambda x, y, z: x * y + z, a, b, c)
    check(f"mad.hi.{name} {{d}}, {{a}}, {{b}}, {{c}};", dtype, lambda x, y, z: (x * y >> bits) + z, a, b, c)


@pytest.mark.parametrize(("name", "wide"), [("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")])
def test_wide_products(name, wide):
    a, b, c = values(TYPES[name]), values(TYPES[name]), values(TYPES[wide])
    check(f"mul.wide.{name} {{d}}, {{a}}, {{b}};", TYPES[wide], lambda x, y: x * y, a, b)
    check(f"mad.wide.{name} {{d}}, {{a}}, {{b}}, {{c}};", TYPES[wide], lambda x, y, z: x * y + z, a, b, c)


@pytest.mark.parametrize("name", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_shifts_clamp_their_count(name):
    dtype, bits = TYPES[name], np.iinfo(TYPES[name]).bits
    counts = RANDOM.integers(0, bits + 8, 256).astype(np.uint32)
    check(f"shl.b{bits} {{d}}, {{a}}, {{b}};", dtype, lambda a, b: a << b if b < bits else 0, values(dtype), counts)
    check(f"shr.{name} {{d}}, {{a}}, {{b}};", dtype, lambda a, b: a >> b, values(dtype), counts)


def test_funnel_shifts():
    a, b, counts = values(np.uint32), values(np.uint32), RANDOM.integers(0, 40, 256).astype(np.uint32)
    wide = lambda low, high: high << 32 | low  # noqa: E731
    check("shf.l.wrap.b32 {d}, {a}, {b}, {c};", np.uint32, lambda x, y, n: wide(x, y) << (n & 31) >> 32, a, b, counts)
    check(
        "shf.l.clamp.b32 {d}, {a}, {b}, {c};", np.uint32, lambda x, y, n: wide(x, y) << min(n, 32) >> 32, a, b, counts
    )
    check("shf.r.wrap.b32 {d}, {a}, {b}, {c};", np.uint32, lambda x, y, n: wide(x, y) >> (n & 31), a, b, counts)
    check("shf.r.clamp.b32 {d}, {a}, {b}, {c};", np.uint32, lambda x, y, n: wide(x, y) >> min(n, 32), a, b, counts)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    dtype = TYPES[f"u{bits}"]
    a, b = values(dtype), values(dtype)
    for op, function in {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}.items():
        check(f"{op}.b{bits} {{d}}, {{a}}, {{b}};", dtype, function, a, b)
    check(f"not.b{bits} {{d}}, {{a}};", dtype, lambda x: ~x, a)
    check(f"cnot.b{bits} {{d}}, {{a}};", dtype, lambda x: x == 0, a)


@pytest.mark.parametrize("table", [0x96, 0xE8, 0x1B, 0x80, 0xFE])
def test_lop3(table):
    def lop(a, b, c):
        return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))

    check(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table};", np.uint32, lop, *(values(np.uint32) for _ in range(3)))


@pytest.mark.parametrize("name", ["u32", "s32", "u64", "s64"])
def test_bit_field_extract(name):
    dtype, bits = TYPES[name], np.iinfo(TYPES[name]).bits
    position = RANDOM.integers(0, bits + 6, 256).astype(np.uint32)
    length = RANDOM.integers(0, bits + 6, 256).astype(np.uint32)

    def extract(a, p, n):
        if n == 0:
            return 0
        unsigned = a & ((1 << bits) - 1)
        sign = -(unsigned >> min(p + n - 1, bits - 1) & 1) if name[0] == "s" else 0
        return sum((unsigned >> (p + i) & 1 if i < n and p + i < bits else sign & 1) << i for i in range(bits))

    check(f"bfe.{name} {{d}}, {{a}}, {{b}}, {{c}};", dtype, extract, values(dtype), position, length)


def test_bit_field_insert():
    def insert(position, length):
        ones = (1 << length) - 1
        return lambda a, b: (b & ~(ones << position)) | (a & ones) << position

    for position, length in ((0, 8), (4, 20), (16, 16), (20, 32), (32, 4), (3, 0)):
        check(f"bfi.b32 {{d}}, {{a}}, {{b}}, {position}, {length};", np.uint32,
              insert(position, length) if position < 32 else lambda a, b: b,
              values(np.uint32), values(np.uint32))  # fmt: skip


@pytest.mark.parametrize("bits", [32, 64])
def test_counts(bits):
    a = values(TYPES[f"u{bits}"])
    check(f"popc.b{bits} {{d}}, {{a}};", np.uint32, lambda x: bin(x).count("1"), a)
    check(f"clz.b{bits} {{d}}, {{a}};", np.uint32, lambda x: bits - x.bit_length(), a)
    check(f"bfind.u{bits} {{d}}, {{a}};", np.uint32, lambda x: x.bit_length() - 1, a)
    check(f"brev.b{bits} {{d}}, {{a}};", TYPES[f"u{bits}"], lambda x: int(f"{x:0{bits}b}"[::-1], 2), a)


def test_bit_masks():
    a, b = RANDOM.integers(0, 48, 256).astype(np.uint32), RANDOM.integers(0, 48, 256).astype(np.uint32)
    a[:4], b[:4] = [0, 31, 32, 2**32 - 1], [32, 1, 0, 2**32 - 1]
    ones = lambda x, y: sum(1 << i for i in range(32) if x <= i < x + y)  # noqa: E731
    check("bmsk.clamp.b32 {d}, {a}, {b};", np.uint32, ones, a, b)
    check("bmsk.wrap.b32 {d}, {a}, {b};", np.uint32, lambda x, y: ones(x & 31, y & 31), a, b)


@pytest.mark.parametrize("name", ["u32", "s32"])
def test_extension_of_some_bits(name):
    a, count = values(np.uint32), RANDOM.integers(0, 40, 256).astype(np.uint32)
    count[:6] = 0, 1, 31, 32, 33, 2**32 - 1

    def extend(x, bits):
        low = x & ((1 << bits) - 1)
        return low - (1 << bits) if name == "s32" and bits and low >> (bits - 1) else low

    check(f"szext.clamp.{name} {{d}}, {{a}}, {{b}};", np.uint32, lambda x, n: extend(x, min(n, 32)), a, count)
    check(f"szext.wrap.{name} {{d}}, {{a}}, {{b}};", np.uint32, lambda x, n: extend(x, n & 31), a, count)


@pytest.mark.parametrize("bits", [32, 64])
def test_carry_chains(bits):
    """Two words, or three, by an instruction each: the sum and the difference of the wide numbers."""
    dtype, ones, kind = TYPES[f"u{bits}"], (1 << bits) - 1, "r" if bits == 32 else "rd"
    a, b, c = (values(dtype) for _ in range(3))
    a[:64], b[:64] = ones, RANDOM.integers(0, 2, 64)  # carries
    low, high = f"%{kind}50", f"%{kind}51"

    def chain(first, second, function, word):
        program = (
            f"{first} {low}, {{a}}, {{b}};\n{second} {high}, {{c}}, {{a}};\nmov.b{bits} {{d}}, {(low, high)[word]};"
        )
        check(program, dtype, lambda x, y, z: function(z << bits | x, x << bits | y) >> bits * word, a, b, c)

    for word in (0, 1):
        chain(f"add.cc.u{bits}", f"addc.u{bits}", lambda x, y: x + y, word)
        chain(f"sub.cc.s{bits}", f"subc.cc.s{bits}", lambda x, y: x - y, word)
    carry = f"add.cc.u{bits} {low}, {{a}}, {{b}};\naddc.cc.u{bits} {low}, {{c}}, {{b}};\naddc.u{bits} {{d}}, 0, 0;"
    check(carry, dtype, lambda x, y, z: z + y + (x + y >> bits) >> bits, a, b, c)
    borrow = carry.replace("add.cc", "sub.cc").replace("addc.cc", "subc.cc").replace("addc.u", "subc.u")
    check(borrow, dtype, lambda x, y, z: -(z - y - (x < y) < 0), a, b, c)


@pytest.mark.parametrize("half", ["lo", "hi"])
@pytest.mark.parametrize("bits", [32, 64])
def test_products_in_carry_chains(bits, half):
    dtype, shift, low = TYPES[f"u{bits}"], bits if half == "hi" else 0, "%r50" if bits == 32 else "%rd50"
    a, b, c = (values(dtype) for _ in range(3))
    product = f"mad.{half}.cc.u{bits} {low}, {{a}}, {{b}}, {{c}};\naddc.u{bits} {{d}}, {{a}}, 0;"
    part = lambda x, y: x * y >> shift & (1 << bits) - 1  # noqa: E731
    check(product, dtype, lambda x, y, z: x + (part(x, y) + z >> bits), a, b, c)
    sign = lambda x: x - (x >> bits - 1 << bits)  # noqa: E731
    signed = f"add.cc.u{bits} {low}, {{a}}, {{a}};\nmadc.{half}.s{bits} {{d}}, {{a}}, {{b}}, {{c}};"
    check(signed, dtype, lambda x, y, z: (sign(x) * sign(y) >> shift) + z + (2 * x >> bits), a, b, c)


def test_a_carry_that_nothing_has_set():
    a = values(np.uint32)
    with pytest.raises(Fault, match="carry") as fault:
        elementwise("addc.u32 {d}, {a}, {a};", np.uint32, a)
    assert fault.value.check == "uninitialised"
    # set by some lanes only
    with pytest.raises(Fault, match="carry"):
        elementwise("setp.lt.u32 %p1, %r1, 8;\n@%p1 add.cc.u32 {d}, {a}, {a};\naddc.u32 {d}, {a}, {a};", np.uint32, a)


@pytest.mark.parametrize(
    "instruction",
    [
        "bmsk.b32 {d}, {a}, {a};",
        "bmsk.clamp.wrap.b32 {d}, {a}, {a};",
        "szext.clamp.s32 {d}, {a};",
        "madc.u32 {d}, {a}, {a}, {a};",
        "add.cc.u16 {d}, {a}, {a};",
        "addc.sat.s32 {d}, {a}, {a};",
        "createpolicy.fractional.L2::evict_last.b64 %rd20, 0f00000000;",
        "createpolicy.fractional.L2::evict_last.b64 %rd20, 0f40000000;",
    ],
)
def test_forms_that_do_not_exist(instruction):
    with pytest.raises(Fault) as fault:
        elementwise(instruction, np.uint32, values(np.uint32))
    assert fault.value.check == "instruction"


def test_cache_policies_change_nothing():
    a = values(np.uint32)
    policy = (
        "createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %rd20, 0f3F000000;\n"
        "createpolicy.range.global.L2::evict_last.b64 %rd21, [%rd1], 64, 128;\n"
        "ld.global.L2::cache_hint.b32 {d}, [%rd1], %rd20;\n"
    )
    np.testing.assert_array_equal(elementwise(policy, np.uint32, a), a)


def test_permute_bytes():
    def permute(a, b, selectors):
        data, out = (b << 32 | a).to_bytes(8, "little"), 0
        for i in range(4):
            selector = selectors >> 4 * i & 15
            byte = data[selector & 7]
            out |= (255 * (byte >> 7) if selector & 8 else byte) << 8 * i
        return out

    check("prmt.b32 {d}, {a}, {b}, {c};", np.uint32, permute, *(values(np.uint32) for _ in range(3)))


def test_absolute_value_and_negation():
    for name in ("s16", "s32", "s64"):
        check(f"abs.{name} {{d}}, {{a}};", TYPES[name], abs, values(TYPES[name]))
        check(f"neg.{name} {{d}}, {{a}};", TYPES[name], lambda x: -x, values(TYPES[name]))


def test_dot_product_of_bytes():
    def dot(a, b, c):
        signed = lambda x, i: ((x >> i & 255) ^ 128) - 128  # noqa: E731
        return c + sum(signed(a, i) * (b >> i & 255) for i in (0, 8, 16, 24))

    check("dp4a.s32.u32 {d}, {a}, {b}, {c};", np.uint32, dot, *(values(np.uint32) for _ in range(3)))
