"""Texts, chats and texts with gaps -> token ids, by the checkpoint's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

# underscores that touch no letter, digit or other underscore, and the one space before them
GAP = re.compile(r" ?(?<!\w)_+(?!\w)")
Chat = Sequence[Mapping[str, str]]  # messages {"role": .., "content": ..}


def are_several(given: Any) -> bool:
    """Whether these are several prompts, texts or chats, rather than one."""
    one = isinstance(given, (str, Mapping)) or not isinstance(given, Sequence) or not given
    return not one and not isinstance(given[0], Mapping)


def is_text(given: Any) -> TypeGuard[str | list[str]]:
    """Whether this is a text or several, rather than token ids."""
    return isinstance(given, str) or (are_several(given) and isinstance(given[0], str))


def encoded(tokenizer: Any, mask_id: int, given: str | Chat) -> Tensor:
    """A text or a chat -> ids (P,) int64; raises ValueError as `Model.encode` describes."""
    chat = _checked_chat(tokenizer, given)
    if tokenizer.chat_template:
        ids = tokenizer(_wrapped(tokenizer, chat), add_special_tokens=False)["input_ids"]
    elif isinstance(given, str):
        ids = tokenizer(given)["input_ids"]
    else:
        raise ValueError("this checkpoint has no chat template; give the prompt as one text")
    if mask_id in ids:
        raise ValueError("the prompt holds the text of the mask token; write it in another way")
    return torch.tensor(ids, dtype=torch.int64)


def has_gap(text: str) -> bool:
    """Whether `with_gaps` finds a gap in a text."""
    return GAP.search(text) is not None


def split_gaps(text: str) -> list[str | int]:
    """The text in parts, in order: what is given (str) and, for each gap, its tokens (int)."""
    parts: list[str | int] = []
    done = 0
    for gap in GAP.finditer(text):
        parts += [text[done : gap.start()], gap[0].count("_")]
        done = gap.end()
    return [part for part in (*parts, text[done:]) if part != ""]


def with_gaps(tokenizer: Any, mask_id: int, text: str) -> Tensor:
    """A text with gaps -> ids (P,) int64 with masks in them, see `Model.encode_gaps`.

    The pieces between the gaps are encoded one by one, so no token depends on a gap's length.
    """
    if not isinstance(text, str) or not has_gap(text):
        raise ValueError(
            f"the text {text!r:.60} has no gap; write underscores where words are missing, one for "
            "each token, with a space or a sign on either side: He buys ___ of 4 apples."
        )
    _check_text(tokenizer, text)
    ids: list[int] = []
    for part in split_gaps(text):
        ids += [mask_id] * part if isinstance(part, int) else plain_ids(tokenizer, part)
    return torch.tensor(ids, dtype=torch.int64)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text as it is, without a chat template or special tokens."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _checked_chat(tokenizer: Any, given: Any) -> list[dict[str, str]]:
    """The prompt as messages, once all of their texts can be encoded."""
    chat = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(chat, Sequence) or not chat:
        raise ValueError(
            f"the prompt is {given!r:.60}; it must be a text, or a list of messages such as "
            "{'role': 'user', 'content': 'Hello'}"
        )
    for message in chat:
        if not _is_message(message):
            raise ValueError(
                f"a message of the chat is {message!r:.60}; it must be a dict with the texts "
                "'role' and 'content'"
            )
        for part in ("role", "content"):
            _check_text(tokenizer, message[part])
    return [dict(message) for message in chat]


def _is_message(value: Any) -> bool:
    parts = [value.get(part) for part in ("role", "content")] if isinstance(value, Mapping) else []
    return bool(parts) and all(isinstance(part, str) for part in parts)


def _check_text(tokenizer: Any, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the prompt holds {text[error.start]!r}, which is not a character; remove it"
        ) from error
    # other added tokens, such as <think>, are text that a user may write
    for added in tokenizer.added_tokens_decoder.values():
        if added.special and added.content in text:
            raise ValueError(
                f"the prompt holds the special token {added.content!r}; write it in another way"
            )


def _wrapped(tokenizer: Any, chat: list[dict[str, str]]) -> str:
    """The chat in the words of the checkpoint's template, up to where the answer begins."""
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise any Jinja error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the checkpoint's chat template fails: {reason}") from error
    for message in chat:
        if message["role"] == "system" and message["content"].strip() not in text:
            raise ValueError(
                "the checkpoint's chat template leaves out the system message; put it in front of "
                "the user's text"
            )
    return text
