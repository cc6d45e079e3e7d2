"""Looking at one warp: what is told is what happened, at the right places, and looking changes nothing."""

import ctypes
import io

import numpy as np
import pytest
import torch

from glm5_ops.workloads import all_workloads
from tests.emulator.__main__ import main
from tests.emulator.debugging import AFTER, BEFORE, BLOCKED, FAILED, Chosen, Printer, Tile, describe_tile, watch
from tests.emulator.device import Fault, session
from tests.emulator.ptx import array_on_device, run

OWN = "mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;"
FILES = '.file 1 "folder/k.cu"\n.file 2 "folder/inlined.cuh"\n'
FIRST = Chosen()
TRIPLE = f"{OWN}\n.loc 1 7 3\nmul.lo.s32 %r2, %r1, 3; st.global.u32 [%rd3], %r2;"


def seen(body: str, chosen: Chosen = FIRST, lines: tuple[str, ...] = (), out=None, **options) -> list:
    """(kind, instruction, {register: values}) of each stop."""
    stops = []

    def note(stop):
        values = {r.name: r.values.copy() for r in stop.registers if r.is_written == (stop.kind == AFTER)}
        stops.append((stop.kind, stop.instruction, values, stop))

    with watch(chosen, note, lines):
        run(body, np.zeros(512, np.uint32) if out is None else out, outside=FILES, **options)
    return stops


def test_registers_have_the_values_that_numpy_computes():
    stops = seen(
        f"{TRIPLE} cvt.rn.f32.s32 %f1, %r2; setp.gt.s32 %p1, %r1, 5; neg.s32 %r3, %r1;", Chosen(warp=1), threads=64
    )
    lanes = np.arange(32, 64)
    after = {text: values for kind, text, values, _ in stops if kind == AFTER}
    np.testing.assert_array_equal(after["mul.lo.s32 %r2, %r1, 3;"]["%r2"], 3 * lanes)
    np.testing.assert_array_equal(after["cvt.rn.f32.s32 %f1, %r2;"]["%f1"], np.float32(3) * lanes)
    assert after["setp.gt.s32 %p1, %r1, 5;"]["%p1"].all()
    np.testing.assert_array_equal(after["neg.s32 %r3, %r1;"]["%r3"], -lanes)
    before = {text: values for kind, text, values, _ in stops if kind == BEFORE}
    np.testing.assert_array_equal(before["st.global.u32 [%rd3], %r2;"]["%r2"], 3 * lanes)
    np.testing.assert_array_equal(np.diff(before["st.global.u32 [%rd3], %r2;"]["%rd3"]), np.full(31, 4))


def test_halves_are_shown_as_numbers():
    stops = seen(
        f"{OWN} cvt.rn.f32.u32 %f1, %r1; cvt.rn.bf16x2.f32 %r4, %f1, 0f3FC00000; fma.rn.bf16x2 %r5, %r4, %r4, %r4;"
    )
    values = next(v for kind, text, v, _ in stops if text.startswith("fma") and kind == BEFORE)["%r4"]
    np.testing.assert_array_equal(values, np.stack([np.full(32, 1.5), np.arange(32)], axis=1))


@pytest.mark.parametrize(("chosen", "count"), [
    (Chosen("k", (1, 0, 0), 1), 8), (Chosen("other"), 0), (Chosen("", (2, 0, 0), 0), 0), (Chosen("", (0, 0, 0), 2), 0),
])  # fmt: skip
def test_only_the_chosen_warp_is_seen(chosen, count):
    body = TRIPLE.replace("add.s64", "mov.u32 %r9, %ctaid.x; mad.wide.u32 %rd2, %r9, 256, %rd2; add.s64")
    stops = seen(body, chosen, threads=64, blocks=2)
    assert len([1 for kind, *_ in stops if kind == BEFORE]) == (count and count + 1)  # and the final ret
    assert all((s.block, s.warp) == ((1, 0, 0), 1) for *_, s in stops)


LOOP = f"""{OWN} mov.u32 %r5, 0;
    LOOP:
    .loc 1 10 1
    add.s32 %r5, %r5, 1;
    .loc 1 11 1
    add.s32 %r6, %r5, 100; add.s32 %r6, %r6, 100;
    .loc 1 12 1
    .loc 2 3 9, function_name $f, inlined_at 1 12 1
    add.s32 %r7, %r6, 1000;
    .loc 2 40 2, function_name $g, inlined_at 2 3 9
    add.s32 %r8, %r6, 2000;
    .loc 1 13 1
    setp.lt.s32 %p1, %r5, 4;
    @%p1 bra LOOP;"""


@pytest.mark.parametrize(("line", "instructions"), [
    ("k.cu:10", ["add.s32 %r5, %r5, 1;"]),
    ("folder/k.cu:11", ["add.s32 %r6, %r5, 100;", "add.s32 %r6, %r6, 100;"]),
    ("inlined.cuh:40", ["add.s32 %r8, %r6, 2000;"]),
    ("inlined.cuh:3", ["add.s32 %r7, %r6, 1000;", "add.s32 %r8, %r6, 2000;"]),
    ("k.cu:12", ["add.s32 %r7, %r6, 1000;", "add.s32 %r8, %r6, 2000;"]),
    ("k.cu:99", []), ("other.cu:10", []),
])  # fmt: skip
def test_a_line_is_met_each_time_with_what_was_inlined_into_it(line, instructions):
    stops = [(text, stop) for kind, text, _, stop in seen(LOOP, lines=(line,)) if kind == BEFORE]
    assert [text for text, _ in stops] == 4 * instructions
    assert [stop.arrives for _, stop in stops] == 4 * [i == 0 for i in range(len(instructions))]


def test_a_loop_within_one_line_arrives_each_time():
    body = f"{OWN} mov.u32 %r5, 0;\n.loc 1 20 1\nLOOP: add.s32 %r5, %r5, 1; setp.lt.s32 %p1, %r5, 3; @%p1 bra LOOP;"
    assert sum(stop.arrives for *_, stop in seen(body, lines=("k.cu:20",))) == 3


def test_the_calls_above_an_inlined_line_are_named():
    (stop,) = [s for kind, _, _, s in seen(LOOP, lines=("inlined.cuh:40",)) if kind == BEFORE][:1]
    assert (stop.file, stop.line) == ("folder/inlined.cuh", 40)
    assert stop.callers == ["folder/inlined.cuh:3", "folder/k.cu:12"]


def test_a_fault_names_the_calls_above_its_line():
    body = LOOP.replace("add.s32 %r8, %r6, 2000;", "st.global.u32 [%rd3+4096], %r6;")
    with pytest.raises(Fault) as raised:
        run(body, np.zeros(32, np.uint32), outside=FILES)
    text = str(raised.value)
    assert "at folder/inlined.cuh:40\n  called from folder/inlined.cuh:3\n  called from folder/k.cu:12" in text


def test_a_warp_that_waits_is_told_once():
    body = f"""{OWN} setp.ge.u32 %p1, %r1, 32; @%p1 bra SECOND; bar.sync 1, 64; bra DONE;
        SECOND: mov.u32 %r5, 0; LOOP: add.s32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, 9000; @%p2 bra LOOP; bar.sync 1, 64;
        DONE: st.global.u32 [%rd3], %r1;"""
    kinds = [kind for kind, text, *_ in seen(body, threads=64) if text.startswith("bar.sync")]
    assert kinds == [BEFORE, BLOCKED, AFTER]


def test_the_instruction_of_a_fault_is_the_last():
    stops = []
    with pytest.raises(Fault), watch(Chosen(), lambda stop: stops.append((stop.kind, stop.instruction))):
        run(f"{OWN} st.global.u32 [%rd3+128], %r1; mov.u32 %r2, 1;", np.zeros(32, np.uint32))
    assert stops[-1] == (FAILED, "st.global.u32 [%rd3+128], %r1;")


RACING = """mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [out]; shr.u32 %r4, %r1, 5; and.b32 %r5, %r1, 31;
    setp.ne.u32 %p1, %r5, 0; mov.u32 %r9, 0;
    LOOP: @%p1 bra SKIP; atom.global.add.u32 %r2, [%rd1], 1; mul.wide.u32 %rd2, %r2, 4; add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3+4], %r4; SKIP: bar.warp.sync -1; add.u32 %r9, %r9, 1; setp.lt.u32 %p2, %r9, 50;
    @%p2 bra LOOP;"""


@pytest.mark.parametrize("seed", range(3))
def test_watching_changes_no_schedule(seed):
    with session(seed, "random"):
        plain = run(RACING, np.zeros(512, np.uint32), threads=256)
    with session(seed, "random"), watch(Chosen(warp=3), lambda stop: stop.registers):
        watched = run(RACING, np.zeros(512, np.uint32), threads=256)
    assert plain[0] == 400 and (np.diff(plain[1:401].astype(int)) < 0).any()
    # a new module each: the seed of a launch is that of the kernel's first
    np.testing.assert_array_equal(plain, watched)


def test_what_the_listener_raises_comes_out():
    with pytest.raises(ZeroDivisionError), watch(Chosen(), lambda stop: 1 // 0):
        run(TRIPLE, np.zeros(32, np.uint32))
    assert (run(TRIPLE, np.zeros(32, np.uint32)) == 3 * np.arange(32)).all()


# ---- tiles


def swizzled_image(matrix: np.ndarray, span: int) -> np.ndarray:
    """Rows of `span` bytes with their 16-byte chunks permuted, by the pictures of the PTX manual."""
    chunk_of = {128: lambda r, c: c ^ r % 8, 64: lambda r, c: c ^ r // 2 % 4, 32: lambda r, c: c ^ r // 4 % 2}[span]
    rows = matrix.view(np.uint8).reshape(-1, span // 16, 16)
    image = np.empty_like(rows)
    for r in range(len(rows)):
        for c in range(span // 16):
            image[r, chunk_of(r, c)] = rows[r, c]
    return image.ravel()


COPY = f""".shared .align 1024 .b8 tile[4096];
    {OWN} ld.param.u64 %rd4, [image]; ld.param.u32 %r9, [first]; mul.lo.s32 %r5, %r1, 4; add.s32 %r5, %r5, %r9;
    cvt.u64.u32 %rd5, %r5; add.s64 %rd4, %rd4, %rd5; mov.u32 %r6, tile; add.s32 %r7, %r6, %r5;
    ld.global.u32 %r8, [%rd4]; st.shared.u32 [%r7], %r8; bar.sync 0;
    .loc 1 5 1
    mov.u32 %r10, %r6;"""


def tiles_at_stop(image: np.ndarray, *tiles: Tile, first: int = 0) -> list:
    """Each tile's values, where they were written, and its text; after `image` was copied from byte `first` on."""
    held, found = array_on_device(image), []

    def look(stop):
        if stop.kind == BEFORE and not found:
            found.extend((*stop.shared(tile), describe_tile(stop, tile)) for tile in tiles)

    arguments = {"arguments": (held, ctypes.c_uint32(first)), "parameters": ("u64 image", "u32 first")}
    with watch(Chosen(), look, ("k.cu:5",)):
        run(COPY, np.zeros(1024, np.uint32), outside=FILES, threads=(len(image) - first) // 4, **arguments)
    held.free()
    return found


@pytest.mark.parametrize("span", [32, 64, 128])
def test_a_swizzled_tile_is_put_in_order(span):
    matrix = np.arange(16 * span // 2, dtype=np.int16).reshape(16, -1)
    whole, part, later = tiles_at_stop(
        swizzled_image(matrix, span), Tile("0x400", 16, span // 2, "i16", span), Tile("%r6", 5, 3, "i16", span),
        Tile(f"%r6+{8 * span}", 8, span // 2, "i16", span),
    )  # fmt: skip
    np.testing.assert_array_equal(whole[0].numpy(), matrix)
    np.testing.assert_array_equal(part[0].numpy(), matrix[:5, :3])
    np.testing.assert_array_equal(later[0].numpy(), matrix[8:])


def test_a_plain_tile_of_any_type():
    values = torch.arange(64, dtype=torch.float32).reshape(8, 8) - 30
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float8_e4m3fn, "e4m3"), (torch.float32, "f32")):
        image = values.to(dtype).view(torch.uint8).numpy().ravel()
        ((got, known, text),) = tiles_at_stop(image, Tile("1024", 8, 8, name))
        assert torch.equal(got.float(), values.to(dtype).float()) and known.all()
        assert text.splitlines()[0] == f"shared 1024: {name}[8, 8]"
        assert text.splitlines()[1].split()[:2] == ["0:", "-30"]


def test_what_was_never_written_is_marked():
    image = np.arange(64, dtype=np.uint8)
    ((_, known, text),) = tiles_at_stop(image, Tile("0x400", 4, 16, "u8"), first=32)
    assert known.tolist() == [[False] * 16] * 2 + [[True] * 16] * 2
    assert text.splitlines()[1].split() == ["0:"] + ["?"] * 16 and text.splitlines()[3].split()[1] == "32"


@pytest.mark.parametrize(("tile", "words"), [
    (Tile("0x3f0", 4, 16, "u8"), "not within"), (Tile("%r77", 1, 1, "u8"), "%r77"),
    (Tile("0x1400", 1, 1, "u8"), "0x1400"),
])  # fmt: skip
def test_a_tile_that_is_not_there(tile, words):
    with pytest.raises(ValueError, match=words):
        tiles_at_stop(np.zeros(64, np.uint8), tile)


@pytest.mark.parametrize(("text", "words"), [
    ("shared:0x400,8,64,bf16,127", "swizzle"), ("shared:0x400,8,65,bf16,128", "130 bytes"),
    ("shared:0x400,8,64,bf17", "bf17"), ("shared:tile,8,64,bf16", "neither"), ("global:0,1,1,u8", "shared:OFFSET"),
])  # fmt: skip
def test_a_tile_that_cannot_be(text, words):
    with pytest.raises(ValueError, match=words):
        Tile.parse(text)


def test_places_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="KERNEL:BLOCK:WARP"):
        Chosen.parse("fp8_gemm:1")
    assert Chosen.parse("a::b<1>:2,3:4") == Chosen("a::b<1>", (2, 3, 0), 4)
    with pytest.raises(ValueError, match="FILE:LINE"), watch(Chosen(), print, ("kernel.cuh",)):
        pass


# ---- as text


def test_a_trace_reads():
    out = io.StringIO()
    body = f"{TRIPLE} setp.lt.u32 %p1, %r1, 4; @%p1 mul.lo.s32 %r3, %r2, %r2;"
    with watch(Chosen(), Printer(traces=True, out=out)):
        run(body, np.zeros(32, np.uint32), outside=FILES)
    lines = out.getvalue().splitlines()
    assert lines[0] == "k, block (0, 0, 0), warp 0"
    assert "k.cu:7 `mul.lo.s32 %r2, %r1, 3;`  %r1 = lane  -> %r2 = 3 * lane" in lines
    assert "k.cu:7 `setp.lt.u32 %p1, %r1, 4;`  %r1 = lane  -> %p1 = lanes 0x0000000f" in lines
    square = "k.cu:7 `mul.lo.s32 %r3, %r2, %r2;` [lanes 0x0000000f]  %p1 = 1  %r2 = 3 * lane  -> %r3 = [0 9 36 81 .. .]"
    assert square in lines


def test_a_stop_reads():
    out = io.StringIO()
    with watch(Chosen(), Printer(traces=False, out=out), ("k.cu:7",)):
        run(f"{TRIPLE} mul.lo.s32 %r3, %r2, %r2;", np.zeros(32, np.uint32), outside=FILES)
    text = out.getvalue()
    assert text.startswith("stop 1: k, block (0, 0, 0), warp 0\n") and text.count("stop") == 1
    table = text.split("-> %r3 by lane\n")[1].splitlines()[:4]
    assert [row.split() for row in table] == [
        [f"{i}:", *(str(9 * lane * lane) for lane in range(i, i + 8))] for i in range(0, 32, 8)
    ]


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["quantize_fp8", "--case", "rows=3,cols=140", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_line(capsys):
    code, out, _ = command(capsys, "--trace", "quantize:0:0")
    lines = out.splitlines()
    assert code == 0 and "quantize" in lines[0] and "warp 0" in lines[0] and lines[-1].startswith("ok ")
    assert any("%tid.x = lane" in line and "sm90.cu:" in line for line in lines)
    place = next(line.split(" ")[0] for line in lines if "st.global" in line)
    code, out, _ = command(capsys, "--break", place, "--warp", "quantize:0:0")
    assert code == 0 and out.startswith("stop 1: ") and "st.global" in out
    code, out, _ = command(capsys)
    assert code == 0 and len(out.splitlines()) == 1


@pytest.mark.parametrize(("arguments", "words"), [
    (("--trace", "quantize"), "KERNEL:BLOCK:WARP"), (("--break", "sm90.cu"), "FILE:LINE"),
    (("--dump", "shared:0x400,1,1,u8"), "--break"), (("--case", "rows=x"), "rows must be"),
    (("--break", "sm90.cu:1", "--dump", "shared:0x400"), "shared:OFFSET"),
])  # fmt: skip
def test_the_command_line_is_misused(capsys, arguments, words):
    code, _, err = command(capsys, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1


def test_a_case_is_one_ops(capsys):
    assert main(["gemm", "quantize_fp8", "--case", "rows=3,cols=140"]) == 2
    assert "one op" in capsys.readouterr().err


def test_a_tile_from_the_command_line(capsys):
    code = main(["fp8_gemm", "--case", "m=16,n=128,k=128", "--break", "gemm_fp8.cuh:236", "--warp", "fp8:0:0",
                 "--dump", "shared:0x400,2,4,e4m3,128"])  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0, out
    a = all_workloads()["fp8_gemm"].case.parse("m=16,n=128,k=128").inputs("cpu")
    shown = [float(x) for line in out.splitlines()[2:4] for x in line.split()[1:]]
    candidates = [
        value[:2, :4].float().flatten().tolist()
        for value in a.values()
        if getattr(value, "dtype", None) == torch.float8_e4m3fn
    ]
    assert any(np.allclose(shown, c, rtol=1e-3) for c in candidates), (shown, candidates)
