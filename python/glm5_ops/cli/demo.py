"""``glm5-ops demo``: choose the keys of a text with the indexer, attend to them, then train a small byte-level language
model with FP8 linear layers, beside the same model in bf16.

The text is the Python standard library's own source code. Both models start from the same numbers and see the same
batches, one step of the one after one step of the other, so that whatever else the machine does touches both alike.
"""

import argparse
import statistics
import sys
import sysconfig
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import glm5_ops
from glm5_ops.cli import _demo_attention, _demo_indexer
from glm5_ops.cli._output import Output, UsageError
from glm5_ops.model import Fp8Linear

SEED = 5
WARM_UP = 20  # steps over which the learning rate rises; the clock does not count them
LEARNING_RATE = 2e-3
MOST_BYTES = 8_000_000  # of text: more than a minute can read


@dataclass(frozen=True)
class Sizes:
    """Every linear layer has multiples of 16 on both sides, which the CUDA kernels ask for."""

    vocabulary: int = 256  # bytes
    width: int = 256
    heads: int = 4
    layers: int = 2
    hidden: int = 768
    context: int = 256
    batch: int = 4


class _Bf16Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return glm5_ops.gemm(x, weight, x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        return glm5_ops.gemm(gradient, weight.t(), x.dtype), glm5_ops.gemm(gradient.t(), x.t(), weight.dtype)


class Bf16Linear(nn.Linear):
    """What FP8 is held against: the same three products in bf16, by ``glm5_ops.gemm``.

    Not torch's: without bf16 instructions (AVX2) its bf16 product is far too slow to train with.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Bf16Product.apply(x.flatten(0, -2), self.weight).view(*x.shape[:-1], self.out_features)


class Block(nn.Module):
    """Causal attention and a gated MLP, each after a normalisation and added to what came in."""

    def __init__(self, sizes: Sizes, linear: type[nn.Module]):
        super().__init__()
        self.heads = sizes.heads
        self.before_attention = nn.RMSNorm(sizes.width, eps=1e-6)
        self.qkv = linear(sizes.width, 3 * sizes.width, bias=False)
        self.attention_out = linear(sizes.width, sizes.width, bias=False)
        self.before_mlp = nn.RMSNorm(sizes.width, eps=1e-6)
        self.gate_and_up = linear(sizes.width, 2 * sizes.hidden, bias=False)
        self.down = linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        heads = self.qkv(self.before_attention(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        # in f32: torch's bf16 attention crawls on processors without bf16 instructions
        q, k, v = heads.permute(2, 0, 3, 1, 4).float()
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).to(x.dtype)
        x = x + self.attention_out(attended.transpose(1, 2).reshape(batch, tokens, width))
        gate, up = self.gate_and_up(self.before_mlp(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class ByteModel(nn.Module):
    """Bytes in, the logits of the next byte out. The embedding stays in bf16, as in GLM-5."""

    def __init__(self, sizes: Sizes, linear: type[nn.Module]):
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position = nn.Embedding(sizes.context, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes, linear) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width, eps=1e-6)
        self.head = linear(sizes.width, sizes.vocabulary, bias=False)
        for parameter in (self.embedding.weight, self.position.weight):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def write(self, start: bytes, length: int, temperature: float = 0.7) -> bytes:
        """Go on from `start`; the same seed gives the same text."""
        device = self.head.weight.device
        generator = torch.Generator().manual_seed(SEED)
        text = list(start)
        for _ in range(length):
            tokens = torch.tensor([text[-self.sizes.context :]], device=device)
            logits = self(tokens)[0, -1].float().cpu() / temperature
            text.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
        return bytes(text)


@dataclass
class Trainee:
    """A model in training and its history."""

    name: str
    model: ByteModel
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self):
        # bf16 parameters lose small updates: the optimizer keeps f32 ones, of which the model's are copies.
        self.parameters = list(self.model.parameters())
        self.masters = [p.detach().float().requires_grad_() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.masters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)

    def step(self, text: Tensor) -> None:
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (len(self.losses) + 1) / WARM_UP)
        loss = loss_of(self.model, text)
        loss.backward()
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                parameter.copy_(master)
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - began)

    def tokens_per_second(self) -> float:
        sizes = self.model.sizes
        return sizes.batch * sizes.context / statistics.median(self.seconds[min(WARM_UP, len(self.seconds) // 2) :])


def loss_of(model: ByteModel, text: Tensor) -> Tensor:
    """Mean cross-entropy in nats per byte; `text` is [batch, context + 1]."""
    logits = model(text[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), text[:, 1:].flatten())


def make_trainees(sizes: Sizes, device: str) -> tuple[Trainee, Trainee]:
    """The same model twice: linear layers in FP8 and in bf16, with the same first weights."""
    torch.manual_seed(SEED)
    plain = ByteModel(sizes, Bf16Linear)
    fp8 = ByteModel(sizes, Fp8Linear)
    fp8.load_state_dict(plain.state_dict())
    return tuple(Trainee(name, m.to(device, torch.bfloat16)) for name, m in (("fp8", fp8), ("bf16", plain)))


def standard_library() -> tuple[Tensor, Tensor]:
    """The text to learn from, and one part in twenty that is kept for judging: the library's own files, by name."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.rglob("*.py") if not {"site-packages", "test", "tests"} & set(p.parts))
    learn, judge, total = [], [], 0
    for number, file in enumerate(files):
        content = file.read_bytes()
        (judge if number % 20 == 7 else learn).append(content)
        total += len(content)
        if total > MOST_BYTES:
            break
    if total < 100_000:
        raise UsageError(f"there is too little of the standard library under {root} to learn from: {total} bytes")
    return tuple(torch.frombuffer(bytearray(b"\n".join(part)), dtype=torch.uint8) for part in (learn, judge))


def batches(text: Tensor, sizes: Sizes, device: str, seed: int):
    """Random stretches of the text, for ever."""
    generator = torch.Generator().manual_seed(seed)
    stretch = torch.arange(sizes.context + 1)
    while True:
        starts = torch.randint(0, len(text) - sizes.context - 1, (sizes.batch, 1), generator=generator)
        yield text[starts + stretch].long().to(device)


@torch.no_grad()
def judged(model: ByteModel, text: Tensor, device: str, count: int = 8) -> float:
    source = batches(text, model.sizes, device, SEED + 1)
    return statistics.fmean(loss_of(model, next(source)).item() for _ in range(count))


def train(trainees: tuple[Trainee, ...], text: Tensor, device: str, seconds: float, steps: int | None, show) -> None:
    """Until the time is up, or for a number of steps."""
    source, began = batches(text, trainees[0].model.sizes, device, SEED), time.perf_counter()
    done = 0
    while done < steps if steps else time.perf_counter() - began < seconds or done < 2:
        batch = next(source)
        for trainee in trainees:
            trainee.step(batch)
        done += 1
        part = done / steps if steps else (time.perf_counter() - began) / seconds
        show(min(1.0, part), f"step {done}: " + ", ".join(f"{t.name} {t.losses[-1]:.3f}" for t in trainees))


@contextmanager
def progress(output: Output):
    """`show(part, text)`: a bar on a terminal, a line for every tenth elsewhere."""
    if sys.stdout.isatty() and not output.as_json and find_spec("rich"):
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        with Progress(*columns) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda part, text: bar.update(task, completed=part, description=text)
        return
    shown = -1

    def show(part: float, text: str) -> None:
        nonlocal shown
        if int(part * 10) > shown:
            shown = int(part * 10)
            output.line(f"{part:4.0%}  {text}")

    yield show


def draw(trainees: tuple[Trainee, ...], path: Path) -> str:
    """The loss curves as a PNG; returns the sentence to print."""
    try:
        import matplotlib
    except ImportError:
        return "no picture of the curves: matplotlib is not installed (pip install 'glm5-ops[cli]')"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    window = max(1, min(10, len(trainees[0].losses) // 5))
    for trainee, style in zip(trainees, ("-", "--"), strict=True):
        losses = torch.tensor(trainee.losses)
        (line,) = axes.plot(range(1, len(losses) + 1), losses, alpha=0.25, linewidth=0.8)
        smooth = losses.unfold(0, window, 1).mean(-1)
        axes.plot(range(window, len(losses) + 1), smooth, style, color=line.get_color(), label=trainee.name)
    axes.set(xlabel="step", ylabel="loss (nats per byte)", title=f"Training loss, and its mean over {window} steps")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return f"loss curves: {path}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to train, both models together (60)")
    parser.add_argument("--steps", type=int, help="train for this many steps instead: the same losses every time")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (cpu)")
    parser.add_argument("--out", type=Path, default=Path("glm5_ops_demo"), help="folder for the picture")
    parser.add_argument("--sample", type=int, default=300, help="bytes of text to write at the end (300)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here")
    if arguments.seconds <= 0 or (arguments.steps is not None and arguments.steps < 1):
        raise UsageError("--seconds and --steps must be above 0")
    learn, judge = standard_library()
    indexer = _demo_indexer.show(learn, arguments.device, output)
    attention = _demo_attention.show(learn, arguments.device, output)
    trainees = make_trainees(Sizes(), arguments.device)
    count = sum(p.numel() for p in trainees[0].parameters)
    output.line(
        f"A byte-level model of {count / 1e6:.1f} million parameters learns {len(learn) / 1e6:.1f} MB of Python's"
    )
    output.line("standard library, with linear layers in FP8 and in bf16: same start, same batches, turn by turn.")
    with progress(output) as show:
        train(trainees, learn, arguments.device, arguments.seconds, arguments.steps, show)
    rows = [
        [t.name, f"{statistics.fmean(t.losses[-10:]):.3f}", f"{judged(t.model, judge, arguments.device):.3f}",
         f"{t.tokens_per_second():.0f}"]
        for t in trainees
    ]  # fmt: skip
    output.line()
    output.table(["linear layers", "training loss", "loss on unseen files", "tokens/s"], rows)
    output.line(
        "Losses in nats per byte, the first over the last 10 steps; tokens/s: forward, backward and update, median."
    )
    output.line(draw(trainees, arguments.out / "loss.png"))
    sample = trainees[0].model.write(b"def ", arguments.sample).decode("utf-8", "replace")
    output.line(f"\nThe FP8 model goes on from 'def ':\n\n{sample}")
    output.document(document_of(trainees, rows, sample) | {"indexer": indexer, "attention": attention})
    return 0 if all((indexer["same"] | attention["same"]).values()) else 1


def document_of(trainees: tuple[Trainee, ...], rows: list[list[str]], sample: str) -> dict:
    models = {
        t.name: {"losses": t.losses, "unseen": float(row[2]), "tokens_per_second": float(row[3])}
        for t, row in zip(trainees, rows, strict=True)
    }
    return {"command": "demo", "seed": SEED, "models": models, "sample": sample}
