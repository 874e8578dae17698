"""Train the bundled model: python -m d2cache.teaching.train --out assets/tiny --minutes 20

A masked-diffusion model of LLaDA's shape, trained on the problems that `d2cache.teaching.tasks`
generates. The objective is LLaDA's (arXiv 2502.09992 Eq. 3: predict what is masked, each row
weighted by one over its masked share), over masks that include those of decoding, see
`d2cache.teaching.masks`. Optimisers: Muon for the matrices, AdamW for the rest. Resumes from
OUT/state.safetensors and keeps OUT/tokenizer.json if those files exist. On N GPUs of one machine:
torchrun --nproc-per-node N -m -- d2cache.teaching.train ..., each with its own rows.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from d2cache import command, models, weights
from d2cache.command import real, whole
from d2cache.model import CONFIGS, Block, Model
from d2cache.teaching.data import LONGEST, Source, chunk, produce
from d2cache.teaching.exam import exam_table
from d2cache.teaching.masks import draw_mask, loss_weights
from d2cache.teaching.pool import PARTS, Part, Pool
from d2cache.teaching.tokenizer import save_tokenizer, train_tokenizer

BATCH_TOKENS = 98304  # of each GPU
MUON_RATE = ADAM_RATE = 2e-3
WARM_UP = 200  # steps
STEADY = 0.6  # share of the training at full rate, then linear to a hundredth
STATE = "state.safetensors"
SMOOTHING = 1e-4  # of the targets: no confidence reaches 1, so that the order is never a tie
Z_LOSS = 1e-4  # times the squared log-sum of the logits' exponentials: they stay finite
TOGETHER = 16  # steps between two looks at the clock, which the first GPU reads for all


class Net:
    """The training pass: no cache, all rows flattened so that every batch has the same shape."""

    def __init__(self, model: Model, compiled: bool):
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.model = model
        self.qkv, self.finish, self.score = wrap(Block.qkv), wrap(_finish), wrap(_score)

    def loss(self, parts: list[Part], masks: torch.Generator, tokens: int) -> Tensor:
        """Mean loss over the rows of the parts, at most `tokens` tokens together."""
        shapes = [part.tokens.shape for part in parts]
        targets = _line([part.tokens for part in parts], tokens)
        drawn = [draw_mask(part.what, masks) for part in parts]
        mask = _line(drawn, tokens)
        rows = sum(shape[0] for shape in shapes)
        weights = [loss_weights(part.what, m) for part, m in zip(parts, drawn, strict=True)]
        weight = _line([w * (len(w) / rows) for w in weights], tokens)
        position = _line([_positions(part.tokens) for part in parts], tokens)
        rope = self.model.rotary(position[None])
        x = self.model.embed(targets.masked_fill(mask, self.model.config.mask_id)[None])
        for block in self.model.blocks:
            x = self.finish(block, x, _attended(*self.qkv(block, x, rope), shapes))
        return self.score(self.model, x, targets, weight)


def _positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)


def _line(parts: list[Tensor], tokens: int) -> Tensor:
    """The rows of all parts one after the other, zeros up to a length of `tokens`."""
    line = torch.cat([part.reshape(-1) for part in parts])
    return F.pad(line, (0, tokens - len(line)))


def _attended(q: Tensor, k: Tensor, v: Tensor, shapes: list[torch.Size]) -> Tensor:
    """Attention within each row of the line: (1,H,N,D) each -> (1,N,H*D), zeros after the rows."""
    sizes = [b * length for b, length in shapes]
    rest = q.shape[2] - sum(sizes)
    cut = [t[0].split([*sizes, rest], dim=1) for t in (q, k, v)]
    out = []
    for (b, length), *qkv in zip(shapes, *(parts[:-1] for parts in cut), strict=True):
        one = (t.unflatten(1, (b, length)).transpose(0, 1) for t in qkv)
        out.append(F.scaled_dot_product_attention(*one).transpose(1, 2).reshape(b * length, -1))
    return F.pad(torch.cat(out), (0, 0, 0, rest))[None]


def _finish(block: Block, x: Tensor, y: Tensor) -> Tensor:
    x = x + block.out_proj(y)
    return x + block.mlp(x)


def _score(model: Model, x: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    logits = model.head(model.norm(x))[0].float()
    loss = F.cross_entropy(logits, targets, reduction="none", label_smoothing=SMOOTHING)
    return ((loss + Z_LOSS * logits.logsumexp(-1).square()) * weight).sum()


def rate_at(progress: float, step: int) -> float:
    """Learning-rate factor: warm-up, constant, then linear to a hundredth."""
    fall = min(1.0, max(0.0, (1 - progress) / (1 - STEADY)))
    return min(1.0, (step + 1) / WARM_UP) * max(0.01, fall)


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon that updates matrices of the same shape together: far fewer launches.

    Nesterov momentum 0.95, five Newton-Schulz steps, update scaled to AdamW's size
    (arXiv 2502.16982 Eq. 4), decoupled weight decay.
    """

    def __init__(self, params, lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                shapes[p.shape].append(p)
            for shape, params in shapes.items():
                for p in params:
                    self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffers = [self.state[p]["momentum_buffer"] for p in params]
                grads = [p.grad for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                torch._foreach_lerp_(grads, buffers, group["momentum"])
                update = orthogonalise(torch.stack(grads)).to(params[0].dtype)
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(update.unbind()), alpha=-rate)


def orthogonalise(grad: Tensor) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices, (N,rows,columns), bf16."""
    x = grad.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


def optimisers(model: Model):
    def matrix(name, p):
        return name.startswith("blocks.") and p.dim() == 2

    named = list(model.named_parameters())
    return [
        Muon([p for n, p in named if matrix(n, p)], lr=MUON_RATE),
        torch.optim.AdamW(
            [p for n, p in named if not matrix(n, p)],
            lr=ADAM_RATE,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            fused=named[0][1].is_cuda,
        ),
    ]


@dataclass
class Training:
    """The state of a training run: what is saved and what a resumed run continues from."""

    model: Model
    average: dict[str, Tensor]  # moving average of the weights, which the checkpoint holds
    optims: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        tensors = {f"param.{n}": p.detach() for n, p in self.model.named_parameters()}
        tensors |= {f"average.{n}": p for n, p in self.average.items()}
        for i, optim in enumerate(self.optims):
            for j, state in optim.state_dict()["state"].items():
                tensors |= {f"optim.{i}.{j}.{k}": torch.as_tensor(v) for k, v in state.items()}
        part = path.with_suffix(".part")
        save_file(
            {n: t.contiguous().cpu() for n, t in tensors.items()},
            part,
            metadata={"step": str(self.step), "seconds": str(self.seconds)},
        )
        part.replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            named = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
            meta = file.metadata()
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        for n, p in self.model.named_parameters():
            p.copy_(named[f"param.{n}"])
            self.average[n].copy_(named[f"average.{n}"])
        for i, optim in enumerate(self.optims):
            state = optim.state_dict()
            for name, tensor in named.items():
                if name.startswith(f"optim.{i}."):
                    _, _, j, key = name.split(".")
                    state["state"].setdefault(int(j), {})[key] = tensor
            optim.load_state_dict(state)


def export(model: Model, average: dict[str, Tensor], out: Path):
    """The averaged weights as a checkpoint, bf16, in a folder that has the tokenizer."""
    copy = Model(model.config)
    copy.load_state_dict({n: p.cpu() for n, p in average.items()})
    weights.save(copy, out, torch.bfloat16)


def first_weights(model: Model):
    """Random initial weights; residual branches start small."""
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=min(0.02, p.shape[1] ** -0.5))
    for block in model.blocks:
        for p in (block.out_proj.weight, block.down_proj.weight):
            p.data /= math.sqrt(2 * model.config.layers)


@torch.no_grad()
def take_weights(model: Model, other: Model, tokenizer: Tokenizer) -> None:
    """The weights of another model of the same shape, and of its tokens those with the same text.

    Tokens that the other's tokenizer lacks keep the weights they have. ValueError where the shape
    is another one.
    """
    for field in ("layers", "width", "heads", "kv_heads", "mlp", "vocab"):
        got, want = getattr(other.config, field), getattr(model.config, field)
        if got != want:
            raise ValueError(
                f"{field} is {got} in the model to start from and {want} in the one to train; "
                "start from a model of the same shape"
            )
    ids, others = tokenizer.get_vocab(), other.tokenizer.get_vocab()
    pairs = torch.tensor([(i, others[text]) for text, i in ids.items() if text in others])
    mine, theirs = pairs.to(model.device).unbind(1)
    named = dict(other.named_parameters())
    for name, p in model.named_parameters():
        weight = named[name].to(p)
        if name in ("embed.weight", "head.weight"):
            p[mine] = weight[theirs]
        else:
            p.copy_(weight)


def start(args: Namespace, device: torch.device, tokenizer: Tokenizer) -> Training:
    """A new training, or the one that is saved in the folder."""
    model = Model(CONFIGS["tiny"]).to(device)
    first_weights(model)
    if args.start:
        take_weights(model, models.load(args.start, device="cpu"), tokenizer)
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    training = Training(model, average, optimisers(model))
    if (args.out / STATE).is_file():
        training.load(args.out / STATE)
    _alike(model)
    return training


def _alike(model: Model) -> None:
    """The weights of the first GPU on all."""
    if not dist.is_initialized():
        return
    for p in model.parameters():
        dist.broadcast(p.data, 0)


@torch.no_grad()
def _average_gradients(model: Model) -> None:
    """The mean over the GPUs, in one message."""
    grads = [p.grad for p in model.parameters()]
    line = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(line)
    line /= dist.get_world_size()
    parts = line.split([grad.numel() for grad in grads])
    torch._foreach_copy_(grads, [t.view_as(g) for t, g in zip(parts, grads, strict=True)])


@contextlib.contextmanager
def making_rows(args: Namespace, tokenizer, training: Training) -> Iterator[Pool]:
    """A pool that worker processes fill meanwhile; rows of a small trial are made here."""
    folder = tempfile.mkdtemp()
    workers: list = []
    alive = lambda: any(worker.is_alive() for worker in workers)
    pool = Pool(training.model.device, folder, alive)
    try:
        if args.batch_tokens < BATCH_TOKENS:
            source = Source(random.Random(args.seed))
            pool.add(chunk(tokenizer, source, training.model.config.eos_id, 8192))
        else:
            workers += _start_workers(args, folder, training)
        yield pool
    finally:
        for worker in workers:
            worker.terminate()
        shutil.rmtree(folder, ignore_errors=True)


def _start_workers(args: Namespace, folder: str, training: Training) -> list:
    spawn = multiprocessing.get_context("spawn")
    workers = []
    for i in range(args.workers):
        name = f"{args.seed}.{_rank()}.{training.step}.{i}"
        job = (folder, str(args.out / "tokenizer.json"), training.model.config.eos_id, name)
        workers.append(spawn.Process(target=produce, args=job, daemon=True))
        workers[-1].start()
    return workers


class Log:
    """Mean loss and speed since the last line."""

    def __init__(self, device: torch.device):
        self.loss, self.tokens, self.since = torch.zeros((), device=device), 0, time.time()

    def add(self, loss: Tensor, tokens: int) -> None:
        self.loss += loss
        self.tokens += tokens

    def show(self, training: Training, pool: Pool, batch_tokens: int, rate: float) -> None:
        """Of the first GPU; its speed times their number is the whole's."""
        line = {
            "step": training.step,
            "seconds": round(training.seconds),
            "loss": round(float(self.loss) / max(1, self.tokens // batch_tokens), 4),
            "tokens_per_second": round(self.tokens / (time.time() - self.since)),
            "pool_tokens": pool.tokens(),
            "rate": round(rate, 4),
        }
        if _rank() == 0:
            print(json.dumps(line), flush=True)
        self.tokens, self.since = 0, time.time()
        self.loss.zero_()


def check(args: Namespace) -> None:
    """Raises ValueError for what cannot be trained; before the minutes that a tokenizer takes."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out is {args.out}, which is a file; name a folder")
    if not args.minutes:
        raise ValueError("--minutes is 0; it must be more than 0")
    if args.start:
        models.label(args.start)
    if args.batch_tokens < PARTS * LONGEST:
        raise ValueError(
            f"--batch-tokens is {args.batch_tokens}; it must be {PARTS * LONGEST} or more: "
            f"{PARTS} rows of up to {LONGEST} tokens"
        )


def _rank() -> int:
    """Which of the GPUs this process has; 0 for one alone."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextlib.contextmanager
def _together() -> Iterator[torch.device]:
    """The device of this process, one of several under torchrun."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def train(args: Namespace) -> None:
    check(args)
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    with _together() as device:
        torch.manual_seed(args.seed + _rank())
        tokenizer = _tokenizer(args.out)
        training = start(args, device, tokenizer)
        if _rank() == 0:
            count = sum(p.numel() for p in training.model.parameters())
            print(f"{count / 1e6:.2f} M weights, from step {training.step}")
        with making_rows(args, tokenizer, training) as pool:
            _loop(args, training, pool)
        if args.problems and _rank() == 0:
            fresh = models.load(str(args.out), device=str(device))  # test what was saved
            print(exam_table(fresh, ["none", "d2"], args.problems, seed=args.seed))


def _tokenizer(out: Path) -> Tokenizer:
    """The one in the folder; the first GPU makes it if there is none."""
    file = out / "tokenizer.json"
    if _rank() == 0 and not file.is_file():
        save_tokenizer(train_tokenizer(), out)
    if dist.is_initialized():
        dist.barrier()
    return Tokenizer.from_file(str(file))


def _loop(args: Namespace, training: Training, pool: Pool) -> None:
    """Train until the time or the steps are up; save now and then, and at the end."""
    device = training.model.device
    net, log = Net(training.model, compiled=device.type == "cuda"), Log(device)
    own = random.Random(f"{args.seed} {_rank()} {training.step}")  # other rows when resumed
    rng, masks = own, torch.Generator(device).manual_seed(own.getrandbits(62))
    pool.wait()
    saved = log.since = time.time()
    begin, at = saved - training.seconds, training.step
    while True:
        if (training.step - at) % TOGETHER == 0:
            seconds = _clock(time.time() - begin, device)
            pool.take_in()
        if (progress := _progress(args, seconds, training.step)) >= 1:
            break
        parts = pool.batch(rng, args.batch_tokens)
        rate = args.rate * rate_at(progress, training.step)
        log.add(_step(training, net, parts, masks, args.batch_tokens, rate), args.batch_tokens)
        training.seconds = seconds
        if time.time() - log.since > 10 or training.step == args.steps:
            log.show(training, pool, args.batch_tokens, rate)
        if time.time() - saved > args.save_every:
            _save(args, training)
            saved = time.time()
    _save(args, training)


def _clock(seconds: float, device: torch.device) -> float:
    """The time that the first GPU has trained: all of them make the same steps."""
    if not dist.is_initialized():
        return seconds
    told = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.broadcast(told, 0)
    return float(told)


def _progress(args: Namespace, seconds: float, step: int) -> float:
    return max(seconds / (60 * args.minutes), step / args.steps if args.steps else 0)


def _step(
    training: Training,
    net: Net,
    parts: list[Part],
    masks: torch.Generator,
    tokens: int,
    rate: float,
) -> Tensor:
    """One update of the weights and their average; -> the loss."""
    model = training.model
    for optim, full in zip(training.optims, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optim.param_groups:
            group["lr"] = full * rate
    with torch.autocast(model.device.type, torch.bfloat16):
        loss = net.loss(parts, masks, tokens)
    loss.backward()
    if dist.is_initialized():
        _average_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optim in training.optims:
        optim.step()
        optim.zero_grad(set_to_none=True)
    decay = min(0.998, (training.step + 1) / (training.step + 10))
    torch._foreach_lerp_(
        list(training.average.values()), [p.detach() for p in model.parameters()], 1 - decay
    )
    training.step += 1
    return loss.detach()


def _save(args: Namespace, training: Training) -> None:
    if _rank() == 0:
        export(training.model, training.average, args.out)
        training.save(args.out / STATE)


def parse(argv=None) -> Namespace:
    parser = command.Parser(prog="python -m d2cache.teaching.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--start", default="", help="checkpoint whose weights to start from")
    parser.add_argument(
        "--rate", type=real(0), default=1.0, help="factor of the learning rates: 1 from nothing"
    )
    parser.add_argument("--minutes", type=real(0), default=20.0, help="length of the training")
    parser.add_argument(
        "--steps", type=whole(0), default=0, help="stop after this many steps (0: by time)"
    )
    batch_help = f"of a step, on each GPU; below {BATCH_TOKENS}: a trial on a few rows"
    parser.add_argument("--batch-tokens", type=whole(1), default=BATCH_TOKENS, help=batch_help)
    parser.add_argument("--save-every", type=real(0), default=60.0, help="seconds between saves")
    parser.add_argument(
        "--problems", type=whole(0), default=0, help="held-out problems per family at the end"
    )
    parser.add_argument(
        "--workers",
        type=whole(1),
        default=4,
        help="processes that make problems, of each GPU",
    )
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0)
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Exit codes as of `d2cache.command.guarded`."""

    def work() -> None:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            train(parse(argv))

    return command.guarded("train", work)


if __name__ == "__main__":
    sys.exit(main())
