"""Token ids, with or without masks among them -> the canvas that a run starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from d2cache import plain
from d2cache.canvas import Canvas, first_of
from d2cache.model import Model, ModelConfig

Prompts = Tensor | ArrayLike | Sequence[Tensor] | Mapping[str, Any]
DEFAULT_LENGTH = 128  # masks appended to prompts that hold none


def open_canvas(
    model: Model,
    prompt_ids: Prompts,
    gen_length: int | None = None,
    block_length: int | None = None,
    stop_at_eos: bool = False,
) -> Canvas:
    """The canvas that a run starts from; ValueError for bad input, see `generate`."""
    c = model.config
    prompts = _as_prompts(prompt_ids, c.vocab)
    appended = _appended(prompts, gen_length, c)
    longest = max(len(p) for p in prompts)
    _check_room(longest, appended, c)
    length = longest + appended
    tokens = torch.full((len(prompts), length), c.mask_id, dtype=torch.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[longest - len(prompt) : longest] = prompt
    start = torch.tensor([longest - len(p) for p in prompts])
    given, prompt_length = _given(tokens, start, c)
    whole = length - prompt_length
    block_length = whole if block_length is None else _length("block_length", block_length)
    if (stops := plain.switch(stop_at_eos)) is None:
        raise ValueError(f"stop_at_eos is {stop_at_eos!r:.80}; it must be True or False")
    return Canvas(
        tokens.to(model.device),
        start.to(model.device),
        prompt_length,
        min(block_length, whole),
        c.mask_id,
        c.eos_id,
        padded=bool(start.any()),
        stop_at_eos=stops,
        given=None if given is None else given.to(model.device),
    )


def given_ranges(canvas: Canvas) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For each row, the ranges [start, stop) of text after `prompt_length`; () in a plain run."""
    if canvas.given is None:
        return ()
    text = (canvas.given & canvas.own & (canvas.position >= canvas.prompt_length)).cpu().numpy()
    edges = np.diff(text, axis=1, prepend=False, append=False)  # True where a range begins or ends
    return tuple(
        tuple((int(a), int(b)) for a, b in np.flatnonzero(row).reshape(-1, 2)) for row in edges
    )


def _appended(prompts: list[Tensor], gen_length: int | None, config: ModelConfig) -> int:
    """How many masks to append; each row must have something to write then."""
    gaps = [bool((p == config.mask_id).any()) for p in prompts]
    if gen_length is None:
        gen_length = 0 if any(gaps) else DEFAULT_LENGTH
    value = plain.whole(gen_length)
    if value is None or value < 0 or not (value or any(gaps)):
        raise ValueError(
            f"gen_length is {gen_length!r:.80}; it must be a whole number of at least 1, or 0 "
            f"where the prompts hold masks to fill, id {config.mask_id}"
        )
    if not (value or all(gaps)):
        raise ValueError(
            f"row {gaps.index(False)} of prompt_ids holds no mask, id {config.mask_id}; put one "
            "where a token is missing, or append masks with gen_length"
        )
    return value


def _check_room(longest: int, appended: int, config: ModelConfig) -> None:
    if longest + appended <= config.max_length:
        return
    what = f"prompt of {longest} tokens + answer of {appended} is {longest + appended}"
    if not appended:
        what = f"the text has {longest} tokens, masks included"
    remedy = "shorten one of them" if appended else "shorten it"
    raise ValueError(f"{what}; {config.name} has room for {config.max_length}: {remedy}")


def _given(tokens: Tensor, start: Tensor, config: ModelConfig) -> tuple[Tensor | None, int]:
    """`Canvas.given` and `prompt_length` of the first canvas (B,T); start (B,): of each row."""
    own = torch.arange(tokens.shape[1]) >= start[:, None]
    masks = (tokens == config.mask_id) & own
    first = first_of(masks)[:, 0]
    if bool((masks == own).all(1).any()):
        raise ValueError("the prompt holds nothing but masks; it needs at least one token of text")
    if config.shift and bool((first == start).any()):
        raise ValueError(
            f"the text begins with a mask; {config.name} predicts each token from the one before "
            "it, so put at least one token in front"
        )
    prompt_length = int(first.min())
    return (None if masks[:, prompt_length:].all() else ~masks), prompt_length


def _length(name: str, given: object) -> int:
    value = plain.whole(given)
    if value is None or value < 1:
        raise ValueError(f"{name} is {given!r:.80}; it must be a whole number of at least 1")
    return value


def _as_prompts(prompt_ids: Any, vocab: int) -> list[Tensor]:
    """One tensor (P,) int64 on the CPU per row."""
    if isinstance(prompt_ids, Mapping) and "input_ids" in prompt_ids:
        return _as_prompts(_without_padding(prompt_ids), vocab)
    try:
        if not isinstance(prompt_ids, Tensor) and len(prompt_ids) and not _is_number(prompt_ids[0]):
            prompts = [torch.as_tensor(p) for p in prompt_ids]
        else:
            whole = torch.as_tensor(prompt_ids)
            prompts = list(whole) if whole.dim() == 2 else [whole]
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(
            f"prompt_ids is {type(prompt_ids).__name__}; it must be token ids (P,) or (B,P), such "
            "as model.encode(text)"
        ) from error
    if not prompts:
        raise ValueError("the prompt is empty; it needs at least one token")
    return [_checked_prompt(p, vocab) for p in prompts]


def _without_padding(encoding: Mapping[str, Any]) -> Any:
    """The ids that a tokenizer's encoding holds: (P,), (B,P), or a list of B rows."""
    ids, mask = encoding["input_ids"], encoding.get("attention_mask")
    if mask is None:
        return ids
    try:
        pairs = zip(ids, mask, strict=True) if np.ndim(mask[0]) else [(ids, mask)]
        return [torch.as_tensor(i)[torch.as_tensor(m).bool()] for i, m in pairs]
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(
            "prompt_ids has an attention_mask that does not fit its input_ids; pass them as the "
            "tokenizer returned them"
        ) from error


def _checked_prompt(prompt: Tensor, vocab: int) -> Tensor:
    floats = prompt.is_floating_point() or prompt.is_complex()
    floats = floats and bool(prompt.numel())  # an empty list has no type of its own
    if prompt.dim() != 1 or floats or prompt.dtype == torch.bool:
        raise ValueError(
            f"prompt_ids has shape {tuple(prompt.shape)} and type {prompt.dtype}; "
            "it must be integer token ids (P,) or (B,P)"
        )
    if not len(prompt):
        raise ValueError("the prompt is empty; it needs at least one token")
    prompt = prompt.to("cpu", torch.int64)  # some unsigned types have no minimum
    if prompt.min() < 0 or prompt.max() >= vocab:
        raise ValueError(
            f"prompt_ids has values from {prompt.min()} to {prompt.max()}; "
            f"the vocabulary has ids 0 to {vocab - 1}"
        )
    return prompt


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, complex)) or getattr(value, "ndim", None) == 0
