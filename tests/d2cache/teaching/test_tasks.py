"""Properties of the problem families and of the tokenizer made from their text."""

import ast
import builtins
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from d2cache import bundled
from d2cache.teaching.tasks import (
    ANSWER_LENGTH,
    FAMILIES,
    Problem,
    correct,
    draw,
    draw_questions,
    few_shot,
    is_held_out,
)
from d2cache.teaching.tasks.base import Family
from d2cache.teaching.tasks.facts import FORMS
from d2cache.teaching.tasks.vocabulary import PIECES
from d2cache.teaching.tokenizer import END, MASK, save_tokenizer, train_tokenizer

SIGNS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}
SLOW = {"sudoku": 50}  # how many times fewer problems are drawn of a family
HOSTILE = (
    "",
    " ",
    "\x00",
    "\ud800",
    "=" * 1000,
    "(" * 3000,
    "[" * 90 + "]" * 90,
    "-" * 3999 + "1",
    "The answer is",
    "The answer is " + "9" * 5000,
    "The answer is \u0663.",
    "= \u00b2",
    "def f(:\n\t  x",
    "def f():\n        return '\\d' is 1",
    "return 1",
    "9" * 3900,
    "{name} {0} %s %(x)s",
    "import os\nos.abort()",
)


def problems(family: str, count: int = 300, seed: int = 0) -> list[Problem]:
    rng = random.Random(seed)
    if family in SLOW:
        count = max(count // SLOW[family], 5)
    return [draw(family, rng, held_out=i % 10 == 0) for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def value(text: str) -> int:
    """The value of an expression, by splitting at its last sign of the lowest rank outside
    brackets; independent of how the generator holds an expression."""
    text = text.strip()
    for signs in ("+-", "*/"):
        depth = 0
        for i in range(len(text) - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(text[i], 0)
            if depth == 0 and text[i] in signs:
                return SIGNS[text[i]](value(text[:i]), value(text[i + 1 :]))
    if text.startswith("("):
        return value(text[1:-1])
    return int(text)


def change_number(text: str) -> str:
    """The text with its last number one higher."""
    found = list(re.finditer(r"[0-9]+", text))[-1]
    return text[: found.start()] + str(int(found.group()) + 1) + text[found.end() :]


NEW_FAMILY = """
from d2cache.teaching.tasks.base import Family, Problem


class Echo(Family, key="echo"):
    title, order, answer_length, weight = "echo", 99, 32, 7

    def make(self, rng):
        text = str(rng.randint(0, 999))
        return Problem("echo", f"Repeat {text}.", text)
"""
USE_IT = """
import random
from d2cache.teaching import data, tasks

problem = tasks.draw("echo", random.Random(0), held_out=False)
assert tasks.correct(problem, problem.answer) and not tasks.correct(problem, "")
print(*tasks.FAMILIES, tasks.ANSWER_LENGTH["echo"], data.MIX["echo"])
"""


def test_a_new_file_is_a_family_known_everywhere(tmp_path):
    ours = Path(__file__).parents[3] / "d2cache"
    shutil.copytree(ours, tmp_path / "d2cache", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "d2cache" / "teaching" / "tasks" / "echo.py").write_text(NEW_FAMILY)
    command = [sys.executable, "-c", USE_IT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*FAMILIES, "echo", "32", "7"]


def test_families_keep_their_order_and_their_names():
    """Tables, and what a seed draws for training, follow the order."""
    old = ["word", "arithmetic", "code", "facts", "lists", "stories"]
    assert list(FAMILIES) == [*old, "sudoku", "sudoku4", "countdown", "maze", "holes"]
    with pytest.raises(ValueError, match="'word' is already in d2cache.teaching.tasks.word; cho"):
        type("Copy", (Family,), {"__module__": __name__}, key="word")


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_gives_same_problems(family):
    assert problems(family, 50, seed=3) == problems(family, 50, seed=3)
    assert problems(family, 50, seed=3) != problems(family, 50, seed=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_held_out_never_share_a_prompt(family):
    rng = random.Random(1)
    count = 2000 // SLOW.get(family, 1)
    train = {draw(family, rng, held_out=False).prompt for _ in range(count)}
    test = {draw(family, rng, held_out=True).prompt for _ in range(count // 20)}
    assert not train & test
    assert not any(map(is_held_out, train))
    assert all(map(is_held_out, test))
    # The prompts hardly ever repeat: the space is far larger than the sample. (Small numbers leave
    # countdown fewer prompts.)
    assert len(train) >= count * (0.97 if family == "countdown" else 0.995)


def test_one_prompt_of_sixteen_is_held_out():
    rng = random.Random(2)
    share = sum(is_held_out(FAMILIES["lists"].make(rng).prompt) for _ in range(8000)) / 8000
    assert 0.05 < share < 0.075


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_clean_and_their_own_answer_is_correct(family):
    for problem in problems(family):
        assert problem.family == family
        assert problem.prompt == problem.prompt.strip()
        assert problem.answer == problem.answer.strip()
        assert "{" not in problem.prompt + problem.answer
        assert "  " not in problem.prompt or problem.of == "code"
        assert correct(problem, problem.answer)
        assert correct(problem, " " + problem.answer + "\n")


@pytest.mark.parametrize("family", ["word", "arithmetic", "lists"])
def test_a_changed_number_is_wrong(family):
    for problem in problems(family):
        if problem.answer != "none":
            assert not correct(problem, change_number(problem.answer))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_answer_or_another_problem_s_answer_is_wrong(family):
    drawn = problems(family)
    for problem, other in pairwise(drawn):
        cut = problem.answer.rsplit(None, 1)[0]
        if cut != problem.answer and family != "arithmetic":
            assert not correct(problem, cut)
        if family in ("code", "stories", "sudoku", "countdown", "maze", "holes"):
            assert not correct(problem, other.answer)
        assert not correct(problem, "")


def test_a_dropped_result_is_wrong():
    for problem in problems("word"):
        assert not correct(problem, problem.answer.split("The answer")[0])
    for problem in problems("arithmetic"):
        if "=" in problem.answer:
            assert not correct(problem, problem.answer.rpartition("=")[0])
            assert correct(problem, problem.answer.rpartition("=")[2])


def test_word_steps_hold_and_start_from_the_prompt():
    lengths = Counter()
    for problem in problems("word", 1500):
        *steps, last = problem.answer.rstrip(".").split(". ")
        known = {int(n) for n in re.findall(r"[0-9]+", problem.prompt)} | {2, 3}
        for step in steps:
            a, sign, b, equals, result = step.split()
            assert equals == "=" and int(a) in known and int(b) in known
            if sign == "/":
                assert int(b) * int(result) == int(a)
            assert SIGNS[sign](int(a), int(b)) == int(result)
            assert 0 <= int(result) <= 999
            known.add(int(result))
        assert last == f"The answer is {steps[-1].split()[-1]}"
        assert problem.prompt.endswith("?")
        lengths[len(steps)] += 1
    assert sorted(lengths) == [1, 2, 3, 4, 5]


def test_arithmetic_reduces_one_operation_at_a_time():
    for problem in problems("arithmetic", 1000):
        asked = re.search(r"[(0-9][0-9 ()+*-]*[0-9)]", problem.prompt).group()
        lines = [asked, *problem.answer.split(" = ")]
        counts = [len(re.findall(r"[+*-]", line)) for line in lines]
        assert 2 <= counts[0] <= 5
        assert counts == list(range(counts[0], -1, -1))
        assert len({value(line) for line in lines}) == 1
        assert all(int(n) <= 999 for line in lines for n in re.findall(r"[0-9]+", line))
        assert all(line.count("(") == line.count(")") for line in lines)


def test_code_is_one_function_with_defined_names():
    for problem in problems("code", 1000):
        (function,) = ast.parse(problem.answer).body
        assert isinstance(function, ast.FunctionDef)
        assert re.search(rf"\b{function.name}\b", problem.prompt)
        names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
        bound = {a.arg for a in function.args.args}
        bound |= {n.id for n in names if isinstance(n.ctx, ast.Store)} | set(dir(builtins))
        assert {n.id for n in names} <= bound
        assert any(isinstance(node, ast.Return) for node in ast.walk(function))
        # Every number of the request is used, and no number comes from elsewhere.
        asked = set(re.findall(r"[0-9]+", problem.prompt))
        assert asked - set(re.findall(r"[0-9]+", problem.answer)) == set()
        assert set(re.findall(r"[0-9]+", problem.answer)) - asked <= {"0", "1", "2"}


def test_code_is_judged_by_its_syntax_tree():
    for problem in problems("code", 200):
        assert correct(problem, problem.answer.replace("    ", "  ") + "  # done")
        assert not correct(problem, problem.answer.replace("return", "yield", 1))
        assert not correct(problem, problem.answer + "\nprint(1)")


def check_hops(facts: str, answer: str) -> str:
    """The short answer; both hops that lead to it are in the facts, and one contains it."""
    *hops, last = answer.rstrip(".").split(". ")
    assert len(hops) == 2 and hops[0] != hops[1]
    short = last.removeprefix("The answer is ")
    assert short in hops[1] or short in hops[0]
    for hop in hops:
        assert any(said + "." in facts for said in ways_to_say(hop))
    return short


def test_both_hops_of_facts_are_in_the_prompt():
    for problem in problems("facts", 500):
        answer = check_hops(problem.prompt, problem.answer)
        sentences = problem.prompt.split(". ")
        assert 20 <= len(sentences) - 1 <= 60
        assert len(set(sentences)) == len(sentences)
        assert not correct(problem, problem.answer.replace(answer, "nobody"))


def test_questions_about_one_list_of_facts_are_answered_by_it():
    rng, fewest = random.Random(11), 99
    for i in range(500):
        facts, asked = draw_questions(rng, 2 + i % 3)
        assert len(asked) == 2 + i % 3 == len(dict(asked)), "no question twice"
        for question, answer in asked:
            assert question.endswith("?") and "?" not in facts
            check_hops(facts, answer)
            assert correct(Problem("facts", f"{facts} {question}", answer), answer)
        sentences = facts.rstrip(".").split(". ")
        assert len(set(sentences)) == len(sentences) <= 60
        fewest = min(fewest, len(sentences))
    assert fewest < 15


def test_questions_about_one_list_of_facts_are_never_held_out(monkeypatch):
    asked = [draw_questions(random.Random(i), 4) for i in range(300)]
    prompts = [f"{facts} {question}" for facts, pairs in asked for question, _ in pairs]
    assert len(prompts) == 1200 and not any(map(is_held_out, prompts))
    # guard: without drawing again, one in sixteen would be held out
    monkeypatch.setattr("d2cache.teaching.tasks.facts.is_held_out", lambda prompt: False)
    free = [draw_questions(random.Random(i), 4) for i in range(300)]
    prompts = [f"{facts} {question}" for facts, pairs in free for question, _ in pairs]
    assert 0.04 < sum(map(is_held_out, prompts)) / 1200 < 0.09


def ways_to_say(hop: str) -> list[str]:
    """The wordings of a fact that is given in its canonical one."""
    ways = [hop]
    for canonical, other, *_ in FORMS.values():
        pattern = re.escape(canonical.rstrip("."))
        pattern = pattern.replace(r"\{p\}", "(?P<p>[A-Z][a-z]+)")
        found = re.fullmatch(pattern.replace(r"\{v\}", "(?P<v>[A-Za-z ]+)"), hop)
        if found:
            ways.append(other.rstrip(".").format(**found.groupdict()))
    return ways


def test_lists_answers():
    for problem in problems("lists", 1000):
        numbers = [int(n) for n in re.findall(r"[0-9]+", problem.prompt.rpartition(":")[2])]
        if "small to large" in problem.prompt or "smallest first" in problem.prompt:
            assert problem.answer == " ".join(map(str, sorted(numbers)))
        elif "large to small" in problem.prompt or "largest first" in problem.prompt:
            assert problem.answer == " ".join(map(str, sorted(numbers)[::-1]))
        elif "Reverse" in problem.prompt:
            assert problem.answer == " ".join(map(str, reversed(numbers)))
        elif "= " in problem.answer:
            for step in problem.answer.split(". "):
                left, result = step.split(" = ")
                assert value(left) == int(result)
        elif ":" in problem.answer:
            ones, count = problem.answer.split(": ")
            assert len(ones.split()) == int(count) == numbers.count(int(ones.split()[0]))


def test_a_story_with_another_character_is_wrong():
    for problem in problems("stories"):
        words = problem.answer.split()
        assert 55 <= len(words) <= 100
        assert not correct(problem, " ".join(words[::-1]))
        assert not correct(problem, problem.answer + " The end.")
        swapped = {"she": "he", "he": "she", "her": "his", "his": "her"}
        other = " ".join(swapped.get(word, word) for word in words)
        assert other == problem.answer or not correct(problem, other)


def test_story_sentences_must_agree_on_the_helper():
    twice = [p for p in problems("stories", 600) if len(re.findall(r"\bduck\b", p.answer)) > 1]
    free = [p for p in twice if "duck" not in p.prompt and "goat" not in p.prompt]
    assert free
    for problem in free:
        assert correct(problem, problem.answer.replace("duck", "goat"))
        assert not correct(problem, problem.answer.replace("duck", "goat", 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_text_is_wrong_and_never_raises(family):
    rng = random.Random(5)
    noise = ["".join(chr(rng.randrange(0x3000)) for _ in range(200)) for _ in range(20)]
    for problem in problems(family, 10):
        for text in (*HOSTILE, *noise):
            assert not correct(problem, text)


def test_few_shot_shows_solved_examples_first():
    first, second, third = problems("word", 3)
    assert few_shot([], third) == third.prompt
    assert few_shot([first, second], third) == (
        f"{first.prompt}\nA: {first.answer}\n\nQ: {second.prompt}\nA: {second.answer}\n\n"
        f"Q: {third.prompt}"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_fit_their_canvas_and_words_are_single_tokens(family, tokenizer):
    assert ANSWER_LENGTH[family] % 32 == 0
    drawn = problems(family, 1000, seed=9)
    for problem in drawn:
        length = len(tokenizer.encode(" " + problem.answer).ids)
        assert length + 1 <= ANSWER_LENGTH[family]
    text = "\n".join(f"{p.prompt}\n {p.answer}" for p in drawn).replace(" Q:", "Q:")
    words = Counter(re.findall(r" [A-Za-z]+", text))
    tokens = sum(len(tokenizer.encode(word).ids) * n for word, n in words.items())
    assert tokens <= 1.02 * sum(words.values())


def test_tokenizer_is_deterministic_and_has_the_size_asked_for(tokenizer):
    first, second = (train_tokenizer(seed=1, samples=300) for _ in range(2))
    assert first.to_str() == second.to_str()
    assert tokenizer.get_vocab_size() == 1024
    assert tokenizer.token_to_id(END) == 1022
    assert tokenizer.token_to_id(MASK) == 1023
    for digit in "0123456789":
        assert len(tokenizer.encode(digit).ids) == len(tokenizer.encode(" " + digit).ids) == 1
    assert len(tokenizer.encode("123").ids) == 3
    assert len(tokenizer.encode("\n        ").ids) == 1


def test_tokenizer_keeps_any_text(tokenizer):
    rng = random.Random(7)
    texts = ["", "caf\u00e9 \u4f60\u597d \U0001f98a\r\n\t x  y", "a__b _ 's 12", "\x00\x7f\u2028"]
    for _ in range(200):
        codes = [rng.randrange(0x110000) for _ in range(rng.randrange(30))]
        texts.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
    for family in FAMILIES:
        texts += [f"Q: {p.prompt}\nA: {p.answer}" for p in problems(family, 50)]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_saved_tokenizer_is_read_by_transformers(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    texts = [f"Q: {p.prompt}\nA: {p.answer} , don't  \u4f60\n" for p in problems("code", 30)]
    for text in texts:
        assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
        assert loaded.decode(loaded(text)["input_ids"]) == text
    message = [{"role": "user", "content": " How many? "}]
    assert loaded.apply_chat_template(message, tokenize=False) == "Q:  How many? \nA:"
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.mask_token_id) == (1022, 1022, 1023)


@pytest.mark.parametrize("family", bundled.FAMILIES)
def test_the_bundled_model_has_a_token_for_each_word_of_its_families(family):
    saved = Path(__file__).parents[3] / "assets" / "tiny" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(saved))
    for problem in problems(family):
        text = f"Q: {problem.prompt}\nA: {problem.answer}"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert len(ids) == len(re.findall(PIECES, text))
