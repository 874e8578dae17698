"""Train the bundled model: python -m d2cache.teaching.train --out assets/tiny --minutes 20

A LLaDA-shaped masked-diffusion model on problems that the project's own generators make. The
objective is LLaDA's (arXiv 2502.09992 Eq. 3: predict what is masked, each row weighted by one
over its masked share), over masks that include what decoding really meets: an answer masked
whole, and a written start with nothing after it. Optimiser: Muon for the matrices, AdamW for the
rest. Resumes from OUT/state.safetensors when that file is there.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from d2cache import models, weights
from d2cache.model import CONFIGS, Block, Model, ModelConfig
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
STEADY = 0.6  # share of the run at full rate, then linear to a hundredth


def draw_mask(what: Tensor, rng: torch.Generator) -> Tensor:
    """Positions to mask (B,L) bool for rows of `what` (B,L), by a mixture of three worlds.

    0.40 of the rows: every answer position masked with one random rate (LLaDA's forward
    process), padding alike or, for half of them, masked whole so that it cannot give the
    answer's length away. 0.25: the whole answer and padding masked, where decoding starts.
    0.35: a written start, a ragged edge, nothing after it (save a few strays in some rows, or a
    written tail of padding), where decoding is half-way.
    """
    b, length = what.shape
    device = what.device

    def uniform(*shape):
        return torch.rand(*shape, device=device, generator=rng)

    world, noise = uniform(b, 1), uniform(b, length)
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

    mask = torch.where(world < 0.40, scattered, (world < 0.65) | half_way) & (answer | padding)
    # solved examples are text to learn from too, in half of the rows that have them
    example = (what == EXAMPLE) & (uniform(b, 1) < 0.5) & (uniform(b, length) < uniform(b, 1))
    mask = mask | example
    # a row without any mask would have no loss: mask its last answer position
    return mask | ((place == size - 1) & answer & ~mask.any(1, keepdim=True))


def loss_weights(what: Tensor, mask: Tensor) -> Tensor:
    """Weight of each masked position (B,L): rows count alike, padding and examples less."""
    weight = mask * ((what == ANSWER) + 0.1 * (what == PADDING) + 0.5 * (what == EXAMPLE))
    return weight / weight.sum(1, keepdim=True) / what.shape[0]


class Net:
    """The training pass: no cache, all rows flattened so that every batch has one shape."""

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
    """Rows made so far, on the device; workers keep adding."""

    def __init__(self, device, folder: str):
        self.device, self.folder = device, Path(folder)
        self.chunks = defaultdict(list)

    def take_in(self):
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
    """Learning-rate factor: warm-up, steady, then linear to a hundredth."""
    fall = min(1.0, max(0.0, (1 - progress) / (1 - STEADY)))
    return min(1.0, (step + 1) / WARM_UP) * max(0.01, fall)


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with matrices of one shape updated together: far fewer launches.

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


def save_state(path: Path, model, average, optims, step: int, seconds: float):
    tensors = {f"param.{n}": p.detach() for n, p in model.named_parameters()}
    tensors |= {f"average.{n}": p for n, p in average.items()}
    for i, optim in enumerate(optims):
        for j, state in optim.state_dict()["state"].items():
            tensors |= {f"optim.{i}.{j}.{k}": torch.as_tensor(v) for k, v in state.items()}
    part = path.with_suffix(".part")
    save_file(
        {n: t.contiguous().cpu() for n, t in tensors.items()},
        part,
        metadata={"step": str(step), "seconds": str(seconds)},
    )
    part.replace(path)


def load_state(path: Path, model, average, optims) -> tuple[int, float]:
    with safe_open(path, "pt") as file:
        named = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
        meta = file.metadata()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(named[f"param.{n}"])
            average[n].copy_(named[f"average.{n}"])
    for i, optim in enumerate(optims):
        state = optim.state_dict()
        for name, tensor in named.items():
            if name.startswith(f"optim.{i}."):
                _, _, j, key = name.split(".")
                state["state"].setdefault(int(j), {})[key] = tensor
        optim.load_state_dict(state)
    return int(meta["step"]), float(meta["seconds"])


def export(model: Model, average: dict[str, Tensor], tokenizer, out: Path):
    """The averaged weights as a checkpoint folder, bf16."""
    copy = Model(model.config)
    copy.load_state_dict({n: p.cpu() for n, p in average.items()})
    weights.save(copy, out, torch.bfloat16)
    save_tokenizer(tokenizer, out)


def first_weights(model: Model):
    """Random weights to begin from; residual branches start small."""
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=min(0.02, p.shape[1] ** -0.5))
    for block in model.blocks:
        for p in (block.out_proj.weight, block.down_proj.weight):
            p.data /= math.sqrt(2 * model.config.layers)


def train(args) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    save_tokenizer(tokenizer, out)
    config: ModelConfig = CONFIGS["tiny"]
    model = Model(config).to(device)
    if args.start:
        model.load_state_dict(models.load(args.start, device="cpu").state_dict())
    else:
        first_weights(model)
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    optims = optimisers(model)
    state = out / "state.safetensors"
    step, before = load_state(state, model, average, optims) if state.is_file() else (0, 0.0)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M weights, from step {step}")

    net = Net(model, compiled=device.type == "cuda")
    rng, masks = random.Random(args.seed), torch.Generator(device).manual_seed(args.seed)
    folder = tempfile.mkdtemp()
    pool = Pool(device, folder)
    workers = []
    if args.batch_tokens < BATCH_TOKENS:  # a small trial run: no worker processes
        source = random.Random(args.seed)
        rows = [row(tokenizer, source, config.eos_id, LENGTHS[:3]) for _ in range(64)]
        for length in LENGTHS[:3]:
            same = [r for r in rows if r.shape[1] == length]
            if same:
                pool.chunks[length].append(torch.from_numpy(np.stack(same, axis=1)).to(device))
    else:
        spawn = multiprocessing.get_context("spawn")
        for i in range(args.workers):
            name = f"{args.seed}.{step}.{i}"
            job = (folder, str(out / "tokenizer.json"), config.eos_id, name)
            workers.append(spawn.Process(target=produce, args=job, daemon=True))
            workers[-1].start()
    try:
        _loop(args, net, pool, average, optims, rng, masks, step, before, state, tokenizer, out)
    finally:
        for worker in workers:
            worker.terminate()
        shutil.rmtree(folder, ignore_errors=True)
    if args.problems:
        fresh = models.load(str(out), device=str(device))  # what counts is what was saved
        print(exam_table(fresh, ["none", "d2"], args.problems, seed=args.seed))


def _loop(args, net, pool, average, optims, rng, masks, step, before, state, tokenizer, out):
    model, device = net.model, net.model.device
    while not pool.chunks:
        time.sleep(0.2)
        pool.take_in()
    begin = saved = shown = time.time()
    total, tokens_seen = torch.zeros((), device=device), 0
    while True:
        seconds = before + time.time() - begin
        progress = max(seconds / (60 * args.minutes), step / args.steps if args.steps else 0)
        if progress >= 1:
            break
        if step % 20 == 0:
            pool.take_in()
        tokens, what = pool.batch(rng, args.batch_tokens)
        mask = draw_mask(what, masks)
        inputs = tokens.masked_fill(mask, model.config.mask_id)
        factor = rate_at(progress, step)
        for optim, rate in zip(optims, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optim.param_groups:
                group["lr"] = rate * factor
        with torch.autocast(device.type, torch.bfloat16):
            loss = net.loss(tokens, inputs, loss_weights(what, mask))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        decay = min(0.998, (step + 1) / (step + 10))
        torch._foreach_lerp_(
            list(average.values()), [p.detach() for p in model.parameters()], 1 - decay
        )
        total += loss.detach()
        step, tokens_seen = step + 1, tokens_seen + tokens.numel()
        if time.time() - shown > 10 or step == args.steps:
            passed = time.time() - shown
            print(
                json.dumps(
                    {
                        "step": step,
                        "seconds": round(before + time.time() - begin),
                        "loss": round(float(total) / max(1, tokens_seen // args.batch_tokens), 4),
                        "tokens_per_second": round(tokens_seen / passed),
                        "pool_tokens": pool.tokens(),
                        "rate": round(factor, 4),
                    }
                ),
                flush=True,
            )
            shown, tokens_seen = time.time(), 0
            total.zero_()
        if time.time() - saved > args.save_every:
            export(model, average, tokenizer, out)
            save_state(state, model, average, optims, step, before + time.time() - begin)
            saved = time.time()
    export(model, average, tokenizer, out)
    save_state(state, model, average, optims, step, before + time.time() - begin)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m d2cache.teaching.train", description=__doc__)
    parser.add_argument("--out", required=True, help="folder of the checkpoint")
    parser.add_argument("--start", default="", help="checkpoint whose weights to begin from")
    parser.add_argument("--minutes", type=float, default=20.0, help="length of the whole run")
    parser.add_argument(
        "--steps", type=int, default=0, help="stop after so many steps (0: by time)"
    )
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds")
    parser.add_argument(
        "--problems", type=int, default=0, help="held-out problems a family at the end"
    )
    cores = os.cpu_count() or 2
    parser.add_argument("--workers", type=int, default=max(1, cores // 2), help="make problems")
    parser.add_argument("--seed", type=int, default=0)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
