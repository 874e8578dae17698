"""Train the bundled model: python -m d2cache.teaching.train --out assets/tiny --minutes 20

A masked-diffusion model of LLaDA's shape, trained on the problems that `d2cache.teaching.tasks`
generates. The objective is LLaDA's (arXiv 2502.09992 Eq. 3: predict what is masked, each row
weighted by one over its masked share), over masks that include those of decoding: an answer that is
masked as a whole, and a written start with nothing after it. Optimisers: Muon for the matrices,
AdamW for the rest. Resumes from OUT/state.safetensors if that file exists.
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

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from d2cache import command, models, weights
from d2cache.command import real, whole
from d2cache.model import CONFIGS, Block, Model
from d2cache.teaching.data import (
    ANSWER,
    BATCH_TOKENS,
    EXAMPLE,
    LENGTHS,
    PADDING,
    produce,
    row,
)
from d2cache.teaching.exam import exam_table
from d2cache.teaching.tokenizer import save_tokenizer, train_tokenizer

MUON_RATE = ADAM_RATE = 2e-3
WARM_UP = 200  # steps
STEADY = 0.6  # share of the training at full rate, then linear to a hundredth
STATE = "state.safetensors"


def draw_mask(what: Tensor, rng: torch.Generator) -> Tensor:
    """Positions to mask (B,L) bool for rows of `what` (B,L), by a mixture of three cases.

    0.40 of the rows: each answer position masked at one random rate (LLaDA's forward process), and
    the padding too or, in half of them, as a whole so that it cannot reveal the answer's length.
    0.25: the whole answer and padding masked, where decoding starts. 0.35: a written start with a
    ragged edge and nothing after it (except a few stray tokens in some rows, or a written tail of
    padding), where decoding is half-way.
    """
    b, length = what.shape
    device = what.device

    def uniform(*shape):
        return torch.rand(*shape, device=device, generator=rng)

    case, noise = uniform(b, 1), uniform(b, length)
    answer, padding = what == ANSWER, what == PADDING
    rate = (torch.arange(b, device=device)[:, None] + uniform(b, 1)) / b * 0.98 + 0.02
    rate = rate[torch.randperm(b, device=device, generator=rng)]
    scattered = noise < rate
    scattered = scattered | (padding & (uniform(b, 1) < 0.5))

    place = answer.cumsum(1) - 1
    size = answer.sum(1, keepdim=True)
    edge = (uniform(b, 1) * (size + 1)).floor()
    ragged = (place >= edge - (uniform(b, 1) * 12).floor()) & (noise < uniform(b, 1))
    strays = noise < uniform(b, 1) * 0.4 * (uniform(b, 1) < 0.4)
    half_way = ragged | ((place >= edge) & ~strays)
    column = torch.arange(length, device=device)
    first_padding = (what != PADDING).sum(1, keepdim=True)
    tail = first_padding + uniform(b, 1) * (length - first_padding)
    written_tail = padding & (column >= tail) & (uniform(b, 1) < 0.2)
    half_way = torch.where(padding, ~written_tail, half_way)

    mask = torch.where(case < 0.40, scattered, (case < 0.65) | half_way) & (answer | padding)
    # solved examples are learned from as well, in half of the rows that have them
    example = (what == EXAMPLE) & (uniform(b, 1) < 0.5) & (uniform(b, length) < uniform(b, 1))
    mask = mask | example
    # a row without any mask would have no loss: mask its last answer position
    return mask | ((place == size - 1) & answer & ~mask.any(1, keepdim=True))


def loss_weights(what: Tensor, mask: Tensor) -> Tensor:
    """Weight of each masked position (B,L): rows weigh the same, padding and examples less."""
    weight = mask * ((what == ANSWER) + 0.1 * (what == PADDING) + 0.5 * (what == EXAMPLE))
    return weight / weight.sum(1, keepdim=True) / what.shape[0]


class Net:
    """The training pass: no cache, all rows flattened so that every batch has the same shape."""

    def __init__(self, model: Model, compiled: bool):
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.model = model
        self.qkv, self.finish, self.score = wrap(Block.qkv), wrap(_finish), wrap(_score)

    def loss(self, tokens: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        b, length = tokens.shape
        position = torch.arange(length, device=tokens.device).expand(b, -1).reshape(1, -1)
        rope = self.model.rotary(position)
        x = self.model.embed(inputs.reshape(1, -1))
        for block in self.model.blocks:
            q, k, v = (
                t[0].unflatten(1, (b, length)).transpose(0, 1) for t in self.qkv(block, x, rope)
            )
            y = F.scaled_dot_product_attention(q, k, v)
            x = self.finish(block, x, y.transpose(1, 2).reshape(1, b * length, -1))
        return self.score(self.model, x, tokens.reshape(-1), weight.reshape(-1))


def _finish(block: Block, x: Tensor, y: Tensor) -> Tensor:
    x = x + block.out_proj(y)
    return x + block.mlp(x)


def _score(model: Model, x: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    logits = model.head(model.norm(x))[0].float()
    return (F.cross_entropy(logits, targets, reduction="none") * weight).sum()


class Pool:
    """The rows made so far, on the device; workers keep adding chunks of them."""

    def __init__(self, device, folder: str):
        self.device, self.folder = device, Path(folder)
        self.chunks = defaultdict(list)

    def wait(self) -> None:
        """Until there are rows."""
        while not self.chunks:
            time.sleep(0.2)
            self.take_in()

    def take_in(self) -> None:
        """Move the chunks that the workers have written into the pool."""
        for path in sorted(self.folder.glob("*[0-9].npy")):
            chunk = torch.from_numpy(np.load(path, allow_pickle=False)).to(self.device)
            self.chunks[chunk.shape[2]].append(chunk)
            path.unlink()

    def tokens(self) -> int:
        return sum(c[0].numel() for chunks in self.chunks.values() for c in chunks)

    def batch(self, rng: random.Random, tokens: int) -> tuple[Tensor, Tensor]:
        """Token ids and kinds, (B,L) int64 each, B * L = tokens."""
        lengths = list(self.chunks)
        sizes = [sum(c.shape[1] for c in self.chunks[n]) * n for n in lengths]
        length = rng.choices(lengths, sizes)[0]
        parts, need = [], tokens // length
        while need > 0:
            chunk = rng.choice(self.chunks[length])
            pick = torch.randperm(chunk.shape[1], device=self.device)[:need]
            parts.append(chunk[:, pick])
            need -= len(pick)
        rows = torch.cat(parts, dim=1).long()
        return rows[0], rows[1]


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


def export(model: Model, average: dict[str, Tensor], tokenizer, out: Path):
    """The averaged weights as a checkpoint folder, bf16."""
    copy = Model(model.config)
    copy.load_state_dict({n: p.cpu() for n, p in average.items()})
    weights.save(copy, out, torch.bfloat16)
    save_tokenizer(tokenizer, out)


def first_weights(model: Model):
    """Random initial weights; residual branches start small."""
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=min(0.02, p.shape[1] ** -0.5))
    for block in model.blocks:
        for p in (block.out_proj.weight, block.down_proj.weight):
            p.data /= math.sqrt(2 * model.config.layers)


def start(args: Namespace, device: torch.device) -> Training:
    """A new training, or the one that is saved in the folder."""
    model = Model(CONFIGS["tiny"]).to(device)
    if args.start:
        model.load_state_dict(models.load(args.start, device="cpu").state_dict())
    else:
        first_weights(model)
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    training = Training(model, average, optimisers(model))
    if (args.out / STATE).is_file():
        training.load(args.out / STATE)
    return training


@contextlib.contextmanager
def making_rows(args: Namespace, tokenizer, training: Training) -> Iterator[Pool]:
    """A pool that worker processes fill meanwhile; rows of a small trial are made here."""
    folder = tempfile.mkdtemp()
    pool, workers = Pool(training.model.device, folder), []
    try:
        if args.batch_tokens < BATCH_TOKENS:
            _add_trial_rows(pool, tokenizer, training.model.config.eos_id, args.seed)
        else:
            workers = _start_workers(args, folder, training)
        yield pool
    finally:
        for worker in workers:
            worker.terminate()
        shutil.rmtree(folder, ignore_errors=True)


def _add_trial_rows(pool: Pool, tokenizer, eos_id: int, seed: int) -> None:
    rng = random.Random(seed)
    rows = [row(tokenizer, rng, eos_id, LENGTHS[:3]) for _ in range(64)]
    for length in LENGTHS[:3]:
        same = [r for r in rows if r.shape[1] == length]
        if same:
            pool.chunks[length].append(torch.from_numpy(np.stack(same, axis=1)).to(pool.device))


def _start_workers(args: Namespace, folder: str, training: Training) -> list:
    spawn = multiprocessing.get_context("spawn")
    workers = []
    for i in range(args.workers):
        name = f"{args.seed}.{training.step}.{i}"
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
        line = {
            "step": training.step,
            "seconds": round(training.seconds),
            "loss": round(float(self.loss) / max(1, self.tokens // batch_tokens), 4),
            "tokens_per_second": round(self.tokens / (time.time() - self.since)),
            "pool_tokens": pool.tokens(),
            "rate": round(rate, 4),
        }
        print(json.dumps(line), flush=True)
        self.tokens, self.since = 0, time.time()
        self.loss.zero_()


def check(args: Namespace) -> None:
    """Raises ValueError for what cannot be trained; before the minutes that a tokenizer takes."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out is {args.out}, which is a file; name a folder")
    if args.start:
        models.label(args.start)
    longest = LENGTHS[2]  # of a trial's rows
    if args.batch_tokens < longest:
        raise ValueError(f"--batch-tokens is {args.batch_tokens}; a row takes up to {longest}")


def train(args: Namespace) -> None:
    check(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    save_tokenizer(tokenizer, args.out)
    training = start(args, device)
    count = sum(p.numel() for p in training.model.parameters())
    print(f"{count / 1e6:.2f} M weights, from step {training.step}")
    with making_rows(args, tokenizer, training) as pool:
        _loop(args, training, pool, tokenizer)
    if args.problems:
        fresh = models.load(str(args.out), device=str(device))  # test what was saved
        print(exam_table(fresh, ["none", "d2"], args.problems, seed=args.seed))


def _loop(args: Namespace, training: Training, pool: Pool, tokenizer) -> None:
    """Train until the time or the steps are up; save now and then, and at the end."""
    device = training.model.device
    net, log = Net(training.model, compiled=device.type == "cuda"), Log(device)
    rng, masks = random.Random(args.seed), torch.Generator(device).manual_seed(args.seed)
    pool.wait()
    saved = log.since = time.time()
    begin = saved - training.seconds
    while (progress := _progress(args, time.time() - begin, training.step)) < 1:
        if training.step % 20 == 0:
            pool.take_in()
        tokens, what = pool.batch(rng, args.batch_tokens)
        rate = rate_at(progress, training.step)
        log.add(_step(training, net, tokens, what, masks, rate), tokens.numel())
        training.seconds = time.time() - begin
        if time.time() - log.since > 10 or training.step == args.steps:
            log.show(training, pool, args.batch_tokens, rate)
        if time.time() - saved > args.save_every:
            _save(args, training, tokenizer)
            saved = time.time()
    _save(args, training, tokenizer)


def _progress(args: Namespace, seconds: float, step: int) -> float:
    return max(seconds / (60 * args.minutes), step / args.steps if args.steps else 0)


def _step(
    training: Training, net: Net, tokens: Tensor, what: Tensor, masks: torch.Generator, rate: float
) -> Tensor:
    """One update of the weights and their average; -> the loss."""
    model = training.model
    mask = draw_mask(what, masks)
    inputs = tokens.masked_fill(mask, model.config.mask_id)
    for optim, full in zip(training.optims, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optim.param_groups:
            group["lr"] = full * rate
    with torch.autocast(model.device.type, torch.bfloat16):
        loss = net.loss(tokens, inputs, loss_weights(what, mask))
    loss.backward()
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


def _save(args: Namespace, training: Training, tokenizer) -> None:
    export(training.model, training.average, tokenizer, args.out)
    training.save(args.out / STATE)


def parse(argv=None) -> Namespace:
    parser = command.Parser(prog="python -m d2cache.teaching.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--start", default="", help="checkpoint whose weights to start from")
    parser.add_argument("--minutes", type=real(0), default=20.0, help="length of the training")
    parser.add_argument(
        "--steps", type=whole(0), default=0, help="stop after this many steps (0: by time)"
    )
    parser.add_argument("--batch-tokens", type=whole(1), default=BATCH_TOKENS)
    parser.add_argument("--save-every", type=real(0), default=60.0, help="seconds between saves")
    parser.add_argument(
        "--problems", type=whole(0), default=0, help="held-out problems per family at the end"
    )
    cores = os.cpu_count() or 2
    parser.add_argument(
        "--workers", type=whole(1), default=max(1, cores // 2), help="processes that make problems"
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
