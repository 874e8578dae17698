"""Characters of several tokens are whole on the stage, whatever order their tokens come in."""

import numpy as np

import d2cache
from analysis.page import characters
from analysis.page.boards import Board, advance
from analysis.page.query import Asked, Lane


def parts(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_joined_the_texts_of_tokens_are_what_was_written():
    tokenizer = d2cache.load("tiny").tokenizer
    one = lambda token: tokenizer.decode([token])
    for text in ("你好 5 apples", "Tom 😀😀 has", "e\u0301 and ü", "plain"):
        ids = parts(tokenizer, text)
        shown = characters.texts(ids, one, tokenizer.decode)
        assert "".join(shown) == text and characters.BROKEN not in "".join(shown)
        assert len(shown) == len(ids)
    ids = parts(tokenizer, "你")
    assert len(ids) > 1 and characters.texts(ids, one, tokenizer.decode) == [
        "你",
        *[""] * (len(ids) - 1),
    ]
    assert characters.texts(ids[:-1], one, tokenizer.decode) == [characters.BROKEN] * (len(ids) - 1)
    assert characters.texts(ids, one) == [characters.BROKEN] * len(ids)  # single texts alone


def test_a_character_is_whole_as_soon_as_its_last_token_is_there_and_broken_again_without_it():
    model = d2cache.load("tiny")
    board = Board("b", Asked("What is 3 + 4? 你", (Lane("none"),), gen_length=16))
    p = len(model.encode(board.asked.prompt))
    first, *rest = parts(model.tokenizer, "你")
    put = {p + 9 + i: token for i, token in enumerate(rest)}
    edits = (
        d2cache.Edit(1, tokens=put),
        d2cache.Edit(2, tokens={p + 8: first}),
        d2cache.Edit(3, tokens={p + 9: model.config.mask_id}),
    )
    board.start(Lane("none", edits=edits), model)
    events = [e for some in advance(board, most=4) for e in some]
    start = next(e for e in events if e["k"] == "start")
    assert "你" in start["prompt"] and characters.BROKEN not in "".join(start["prompt"])
    steps = [e for e in events if e["k"] == "rec"]
    texts = [{w[0]: w[1] for w in e["w"]} for e in steps]
    assert texts[1][p + 9] == characters.BROKEN and texts[2][p + 8] == "你"
    assert dict(steps[2]["j"]) == dict.fromkeys(put, "")
    assert dict(steps[3]["j"])[p + 8] == characters.BROKEN
    exported = [e for e in board.events() if e["k"] == "rec"]
    assert [e.get("j") for e in exported] == [e.get("j") for e in steps]
    assert np.array_equal(board.runs[0].snapshot().tokens[0, :p], model.encode(board.asked.prompt))
