"""A small byte-level BPE tokenizer trained on the text of the generated problems."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from d2cache.teaching.data import Source
from d2cache.teaching.tasks import FAMILIES
from d2cache.teaching.tasks.vocabulary import PIECES
from d2cache.weights import FREQUENCY

END = "<|endoftext|>"
MASK = "<|mdm_mask|>"

# the prompt always opens the answer: every "Q:" is followed by its "A:"
CHAT_TEMPLATE = "{% for m in messages %}Q: {{ m['content'] }}\nA:{% endfor %}"


def training_texts(seed: int, samples: int) -> Iterator[str]:
    """``samples`` training problems of each family, as the model sees them."""
    source = Source(random.Random(seed))
    for family in (key for key, one in FAMILIES.items() if not one.gaps):
        for _ in range(samples):
            problem = source.draw(family)
            yield f"Q: {problem.prompt}\nA: {problem.answer}\n\n"


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Cuts a text into pieces without losing a byte; no token crosses a cut."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _learn_merges(texts: list[str], vocab_size: int) -> list[tuple[str, str]]:
    """The merges of a plain BPE trained over all bytes, most frequent pairs first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _count_pieces(texts: list[str]) -> list[str]:
    """The distinct pieces of the texts, the most frequent first."""
    cutter, counts = _pre_tokenizer(), Counter()
    for text in texts:
        counts.update(piece for piece, _ in cutter.pre_tokenize_str(text))
    return sorted(counts, key=lambda piece: (-counts[piece], piece))


def train_tokenizer(vocab_size: int = 1024, seed: int = 0, samples: int = 2000) -> Tokenizer:
    """Train the tokenizer; the last two ids are the end-of-text and the mask token.

    A plain BPE of this size would spend more than a third of its ids on parts of words that the
    problems never show alone. So the pieces of the problems get their ids first, right after the
    256 bytes, and the most frequent merges fill the rest for other words. ``ignore_merges`` makes
    a piece that has an id that one token. ValueError if the samples fill fewer ids.
    """
    texts = list(training_texts(seed, samples))
    room = vocab_size - 2
    tokens = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    for piece in _count_pieces(texts):
        if len(tokens) < room:
            tokens[piece] = None
    merges = []
    for left, right in _learn_merges(texts, room):
        known = left in tokens and right in tokens
        if known and (left + right in tokens or len(tokens) < room):
            tokens[left + right] = None
            merges.append((left, right))
    if len(tokens) != room:
        raise ValueError(
            f"{samples} samples give {len(tokens)} tokens and {room} are needed; draw more samples"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, MASK])
    return tokenizer


def token_frequency(tokenizer: Tokenizer, seed: int = 0, samples: int = 2000) -> torch.Tensor:
    """Share of each token id in the problems' texts, each with its end: (V,) float32, sum 1."""
    counts = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.float64)
    for text in training_texts(seed, samples):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        ids.append(tokenizer.token_to_id(END))
        counts += torch.bincount(torch.tensor(ids), minlength=len(counts))
    return (counts / counts.sum()).float()


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write the files that ``transformers.PreTrainedTokenizerFast.from_pretrained`` reads, and
    the frequency of each token."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "mask_token": MASK,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "model_max_length": 4096,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    share = {"frequency": token_frequency(tokenizer)}
    save_file(share, str(folder / FREQUENCY))
