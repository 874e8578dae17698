"""Six families of small problems with one canonical, step-by-step answer each.

Every problem is drawn from a seeded ``random.Random``, so the same seed gives the same problems.
Prompts are split by a hash into a training part (15 of 16) and a held-out part (1 of 16); the two
can never share a prompt.  The chat template shows a problem as ``"Q: " + prompt + "\\nA:"`` and the
answer follows as ``" " + answer``.
"""

import ast
import hashlib
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One question and its reference answer, both plain text without outer white space."""

    family: str
    prompt: str
    answer: str


# Length, in tokens of the package's tokenizer, of the canvas on which an answer is decoded.  It has
# room for the longest answer, the end-of-text token and a little more.
ANSWER_LENGTH: dict[str, int] = {
    "word": 64,
    "arithmetic": 64,
    "code": 64,
    "facts": 32,
    "lists": 64,
    "stories": 96,
}


def _words(text: str) -> list[str]:
    """A word list written as one text."""
    return text.split()


# Word lists are shared between the families so that nearly every word is one token.
SHE = _words(
    "Mia Ana Eva Nora Lily Zoe Emma Ruth Kate Lucy Rosa Jane Sara Ella Ivy Nina Dora Vera Maya Tess"
)
HE = _words(
    "Tom Ben Sam Max Leo Ivan Paul Jack Noah Adam Luke Omar Hugo Finn Karl Eric Dan Joe Tim Ned"
)
NAMES = SHE + HE
FOODS = _words("apples plums pears eggs cakes nuts pies figs beans grapes")
ITEMS = FOODS + _words(
    "pens books cards coins shells stamps seeds roses stones beads balls cups hats keys rings bells"
    " toys kites maps lamps boats drums"
)
COLOURS = _words("red green blue white black yellow brown grey pink gold")
ANIMALS = _words("fox cat dog rabbit horse bird bear mouse hen goat duck frog")
JOBS = _words("baker farmer singer painter driver writer sailor cook nurse pilot guard judge")
TOWNS = _words("Rome Paris Oslo London Bonn Lima Cairo Berlin Delhi Kyoto Milan Dublin")
OBJECTS = _words(
    "boat lamp drum hat key map bell book kite ring coat cup clock flute basket lantern"
)
PLACES = _words("forest garden village desert port market castle valley barn cave tower park")
TRAITS = _words("brave kind shy clever lazy proud quiet young small happy careful strong")


# --------------------------------------------------------------------------------------------------
# word: told problems of one to five steps


Step = tuple[int, str, int]


def _result(step: Step) -> int:
    """The value of one step ``(left, sign, right)``; divisions are exact by construction."""
    left, sign, right = step
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left // right


def _small_product(left: int, right: int) -> bool:
    """Whether a product is 2 digits by 1 digit at most, or within the table up to 12 times 12."""
    low, high = min(left, right), max(left, right)
    return high <= 12 or (low <= 9 and high <= 99)


def _show_steps(steps: list[Step]) -> str:
    """The canonical answer: one equation a step, then the result of the last one."""
    shown = "".join(f"{a} {sign} {b} = {_result((a, sign, b))}. " for a, sign, b in steps)
    return f"{shown}The answer is {_result(steps[-1])}."


# A change to a running count: the sentence and the one or two steps it adds, or None where it does
# not fit the count.  {sub} is the person as a subject, {obj} as an object, {other} someone else.
Change = tuple[str, list[Step]] | None

GAINS = (
    "{sub} finds {n} more {items}.",
    "{other} gives {obj} {n} {items}.",
    "{sub} gets {n} {items} from {other}.",
    "Then {sub} buys {n} more {items}.",
    "Later {sub} makes {n} more {items}.",
)
LOSSES = (
    "{sub} gives {n} {items} to {other}.",
    "{sub} loses {n} of the {items}.",
    "Then {sub} sells {n} {items}.",
    "{other} takes {n} of the {items}.",
    "Later {sub} uses {n} of the {items}.",
)
PACKS_IN = (
    "{sub} buys {n} bags of {m} {items}.",
    "{other} brings {obj} {n} boxes with {m} {items} each.",
    "Then {sub} gets {n} bags with {m} {items} in each bag.",
)
PACKS_OUT = (
    "{sub} gives {m} {items} to each of {n} friends.",
    "Then {sub} sells {n} bags of {m} {items}.",
    "{sub} uses {m} {items} a day for {n} days.",
)
HALVES = (
    "{sub} gives half of the {items} to {other}.",
    "{sub} loses half of the {items}.",
    "Then {sub} sells half of the {items}.",
)
GROWTHS = (
    "Then the number of {items} {times}.",
    "{sub} works hard and the number of {items} {times}.",
    "With help from {other} the number of {items} {times}.",
)


def _gain(rng: random.Random, count: int) -> Change:
    n = rng.randint(2, 60)
    return rng.choice(GAINS).replace("{n}", str(n)), [(count, "+", n)]


def _lose(rng: random.Random, count: int) -> Change:
    if count < 4:
        return None
    n = rng.randint(1, min(count - 1, 60))
    return rng.choice(LOSSES).replace("{n}", str(n)), [(count, "-", n)]


def _pack_in(rng: random.Random, count: int) -> Change:
    n, m = rng.randint(2, 9), rng.randint(2, 12)
    text = rng.choice(PACKS_IN).replace("{n}", str(n)).replace("{m}", str(m))
    return text, [(n, "*", m), (count, "+", n * m)]


def _pack_out(rng: random.Random, count: int) -> Change:
    n, m = rng.randint(2, 9), rng.randint(2, 9)
    if n * m >= count:
        return None
    text = rng.choice(PACKS_OUT).replace("{n}", str(n)).replace("{m}", str(m))
    return text, [(n, "*", m), (count, "-", n * m)]


def _halve(rng: random.Random, count: int) -> Change:
    if count % 2 or not 4 <= count <= 198:
        return None
    return rng.choice(HALVES), [(count, "/", 2)]


def _grow(rng: random.Random, count: int) -> Change:
    times = rng.choice((2, 3))
    if not 2 <= count <= 99:
        return None
    word = "doubles" if times == 2 else "triples"
    return rng.choice(GROWTHS).replace("{times}", word), [(count, "*", times)]


CHANGES = (_gain, _gain, _lose, _lose, _pack_in, _pack_out, _halve, _grow)

NOW = (
    "How many {items} does {name} have now?",
    "How many {items} are left?",
    "How many {items} does {name} have in the end?",
)
SHARES = (
    "{name} shares the {items} equally among {n} friends. How many {items} does each friend get?",
    "{name} puts all the {items} into {n} equal bags. How many {items} are in each bag?",
    "{name} packs all the {items} into boxes of {n}. How many boxes does {name} need?",
)
SALES = (
    "{name} sells all the {items} for {n} dollars each. How many dollars does {name} get?",
    "All the {items} cost {n} dollars each. How many dollars do they cost together?",
)


def _closing(rng: random.Random, count: int, room: int) -> tuple[str, list[Step]]:
    """The question, with a last step where one of at most ``room`` fits: (text, steps)."""
    if room and rng.random() < 0.4:
        parts = [n for n in range(2, 10) if count % n == 0 and n < count <= 99 * n]
        if parts and rng.random() < 0.7:
            n = rng.choice(parts)
            return rng.choice(SHARES).replace("{n}", str(n)), [(count, "/", n)]
        if count <= 99:
            n = rng.randint(2, 9)
            return rng.choice(SALES).replace("{n}", str(n)), [(count, "*", n)]
    return rng.choice(NOW), []


def _opening(rng: random.Random, room: int) -> tuple[str, int, list[Step]]:
    """How many there are at first: (sentence, count, steps)."""
    if room > 1 and rng.random() < 0.3:
        n, m = rng.randint(2, 9), rng.randint(2, 12)
        verb = rng.choice(("has", "buys", "finds"))
        pack = rng.choice(("bags", "boxes"))
        return f"{{name}} {verb} {n} {pack} of {m} {{items}}.", n * m, [(n, "*", m)]
    count = rng.randint(2, 90)
    text = rng.choice(("{name} has {n} {items}.", "{name} starts with {n} {items}."))
    return text.replace("{n}", str(count)), count, []


def _pick_person(rng: random.Random) -> dict[str, str]:
    """A person and another one of the other gender, so that she and he are never ambiguous."""
    if rng.random() < 0.5:
        return {"name": rng.choice(SHE), "other": rng.choice(HE), "he": "she", "him": "her"}
    return {"name": rng.choice(HE), "other": rng.choice(SHE), "he": "he", "him": "him"}


def _tell(rng: random.Random, template: str, who: dict[str, str], items: str) -> str:
    """Fills a sentence; the person is named or, at random, a pronoun."""
    named = rng.random() < 0.5
    sub = who["name"] if named else who["he"]
    text = template.format(
        sub=sub,
        obj=who["name"] if named else who["him"],
        name=who["name"],
        other=who["other"],
        items=items,
    )
    return text[0].upper() + text[1:]


def _chain(rng: random.Random) -> tuple[list[str], list[Step]]:
    """A running count of one person's things."""
    goal = rng.choice((1, 2, 3, 3, 4, 4, 5, 5))
    who, items = _pick_person(rng), rng.choice(ITEMS)
    text, count, steps = _opening(rng, goal)
    texts = [text]
    closing_room = 1 if goal > 1 else 0
    while len(steps) < goal - closing_room:
        change = rng.choice(CHANGES)(rng, count)
        if change is None or len(steps) + len(change[1]) > goal:
            continue
        texts.append(change[0])
        steps += change[1]
        count = _result(steps[-1])
    text, last = _closing(rng, count, goal - len(steps))
    texts.append(text)
    return [_tell(rng, text, who, items) for text in texts], steps + last


def _relate(rng: random.Random, count: int, than: str, who: str, items: str) -> tuple[str, Step]:
    """A sentence that gives ``who``'s number by that of ``than``, and its step."""
    kind = rng.randrange(4)
    if kind == 0 and 2 <= count <= 60:
        times = rng.randint(2, 6)
        word = "twice" if times == 2 else f"{times} times"
        return f"{who} has {word} as many {items} as {than}.", (count, "*", times)
    if kind == 1 and count % 2 == 0 and 4 <= count <= 198:
        return f"{who} has half as many {items} as {than}.", (count, "/", 2)
    if kind == 2 and count > 3:
        n = rng.randint(1, min(count - 1, 40))
        return f"{who} has {n} fewer {items} than {than}.", (count, "-", n)
    n = rng.randint(1, 40)
    return f"{who} has {n} more {items} than {than}.", (count, "+", n)


def _compare(rng: random.Random) -> tuple[list[str], list[Step]]:
    """Two or three people whose numbers are given relative to each other."""
    people = rng.sample(NAMES, rng.choice((2, 2, 3)))
    items = rng.choice(ITEMS)
    counts, steps = [rng.randint(2, 60)], []
    texts = [f"{people[0]} has {counts[0]} {items}."]
    for i in range(1, len(people)):
        text, step = _relate(rng, counts[-1], people[i - 1], people[i], items)
        texts.append(text)
        steps.append(step)
        counts.append(_result(step))
    if rng.random() < 0.3:
        change = _gain(rng, counts[-1]) if rng.random() < 0.5 else _lose(rng, counts[-1])
        if change is not None and "{other}" not in change[0]:
            text = change[0].replace("{sub}", people[-1]).replace("{items}", items)
            texts.append(text)
            steps += change[1]
            counts[-1] = _result(steps[-1])
    text, last = _compare_question(rng, people, counts, items)
    return [*texts, text], steps + last


def _compare_question(
    rng: random.Random, people: list[str], counts: list[int], items: str
) -> tuple[str, list[Step]]:
    """Asks for the total, a difference, or the last person's number."""
    kind = rng.randrange(4)
    if kind == 0:
        return f"How many {items} does {people[-1]} have now?", []
    if kind == 1 and counts[0] != counts[-1]:
        order = (0, -1) if counts[0] > counts[-1] else (-1, 0)
        more, less = people[order[0]], people[order[1]]
        text = f"How many more {items} does {more} have than {less}?"
        return text, [(counts[order[0]], "-", counts[order[1]])]
    steps, total = [], counts[0]
    for count in counts[1:]:
        steps.append((total, "+", count))
        total += count
    ending = rng.choice(("together", "in all"))
    return f"How many {items} do they have {ending}?", steps


def _shop(rng: random.Random) -> tuple[list[str], list[Step]]:
    """Price times quantity for one or two kinds of things, perhaps with the change."""
    who = _pick_person(rng)
    first, second = rng.sample(ITEMS, 2)
    n, p, m, q = (rng.randint(2, 12) for _ in range(4))
    name, steps = who["name"], [(n, "*", p)]
    texts = [f"{name} buys {n} {first} for {p} dollars each."]
    if rng.random() < 0.3:
        texts = [f"In a shop {first} cost {p} dollars each.", f"{name} buys {n} {first}."]
    cost, subject = n * p, rng.choice((name, who["he"].capitalize()))
    if rng.random() < 0.6:
        texts.append(f"{subject} also buys {m} {second} for {q} dollars each.")
        steps += [(m, "*", q), (cost, "+", m * q)]
        cost += m * q
    if rng.random() < 0.5:
        money = cost + rng.randint(1, 60)
        place = rng.choice((0, len(texts)))
        texts.insert(place, f"{name} {'had' if place else 'has'} {money} dollars.")
        steps.append((money, "-", cost))
        return [*texts, f"How many dollars does {name} have left?"], steps
    return [*texts, f"How many dollars does {name} pay in all?"], steps


def _daily(rng: random.Random) -> tuple[list[str], list[Step]]:
    """Something made at a steady rate by one or two people."""
    who, items = _pick_person(rng), rng.choice(ITEMS)
    rate, days = rng.randint(2, 12), rng.randint(2, 9)
    verb = rng.choice(("makes", "finds", "paints", "packs"))
    name, other = who["name"], who["other"]
    if rng.random() < 0.4:
        rate2 = rng.randint(2, 12)
        texts = [f"{name} {verb} {rate} {items} a day.", f"{other} {verb} {rate2} {items} a day."]
        texts.append(f"How many {items} do they have together after {days} days?")
        return texts, [(rate, "+", rate2), (rate + rate2, "*", days)]
    texts, steps = [f"{name} {verb} {rate} {items} a day for {days} days."], [(rate, "*", days)]
    count = rate * days
    for _ in range(rng.randint(0, 2)):
        change = rng.choice((_lose, _gain, _halve))(rng, count)
        if change is not None:
            texts.append(_tell(rng, change[0], who, items))
            steps += change[1]
            count = _result(steps[-1])
    text, last = _closing(rng, count, 1)
    return [*texts, _tell(rng, text, who, items)], steps + last


def _distract(rng: random.Random, texts: list[str]) -> list[str]:
    """Adds one sentence with a number that does not matter, about somebody who is not in them."""
    told = re.findall(r"[A-Za-z]+", " ".join(texts))
    # Of the other gender than the first person told of, whom a pronoun may stand for.
    first = next(word for word in told if word in NAMES)
    name, items = rng.choice(HE if first in SHE else SHE), rng.choice(ITEMS)
    if name in told or items in told:
        return texts
    n = rng.randint(2, 60)
    extra = rng.choice((f"{name} is {n} years old.", f"{name} has {n} {items}."))
    if "they" in texts[-1]:
        extra = f"A house nearby has {n} {items}."
    return [texts[0], extra, *texts[1:]] if rng.random() < 0.5 else [extra, *texts]


SCENES = (
    "It is a warm day in {town}.",
    "It is a cold morning in the {place}.",
    "The {place} in {town} is full of people.",
    "The road to the {place} is quiet today.",
    "There is a big market near the {place} in {town}.",
)


def _set_scene(rng: random.Random, texts: list[str]) -> list[str]:
    """Adds a sentence without any number before the problem."""
    scene = rng.choice(SCENES).format(town=rng.choice(TOWNS), place=rng.choice(PLACES))
    return [scene, *texts]


def _word(rng: random.Random) -> Problem:
    """A told problem; problems with a value outside 0..999 or too many steps are drawn again."""
    while True:
        make = rng.choice((_chain, _chain, _chain, _compare, _compare, _shop, _daily))
        texts, steps = make(rng)
        values_fit = all(0 <= _result(step) <= 999 for step in steps)
        products_fit = all(_small_product(a, b) for a, sign, b in steps if sign == "*")
        if values_fit and products_fit and 1 <= len(steps) <= 5:
            break
    if rng.random() < 0.2 and len(texts) < 7:
        texts = _distract(rng, texts)
    if rng.random() < 0.4 and len(texts) < 7:
        texts = _set_scene(rng, texts)
    return Problem("word", " ".join(texts), _show_steps(steps))


# --------------------------------------------------------------------------------------------------
# arithmetic: bracketed expressions, reduced one operation at a time


# An expression is a number or (sign, left, right).
Tree = int | tuple
ASKS = (
    "Compute {}.",
    "What is {}?",
    "Work out {}.",
    "Find the value of {}.",
    "Calculate {} step by step.",
)


def _grow_tree(rng: random.Random, operations: int) -> tuple[Tree, int]:
    """A random expression with that many operations and its value; values stay within 0..999."""
    if operations == 0:
        n = rng.randint(1, 12) if rng.random() < 0.5 else rng.randint(1, 99)
        return n, n
    while True:
        left_operations = rng.randrange(operations)
        left, a = _grow_tree(rng, left_operations)
        right, b = _grow_tree(rng, operations - 1 - left_operations)
        signs = ["+"] if a + b <= 999 else []
        if a >= b:
            signs += ["-", "-"]
        if _small_product(a, b) and a and b:
            signs += ["*", "*"]
        if signs:
            sign = rng.choice(signs)
            return (sign, left, right), _result((a, sign, b))


def _show_tree(tree: Tree, in_product: bool = False, on_right: bool = False) -> str:
    """The expression with the brackets it needs, given the place where it stands."""
    if isinstance(tree, int):
        return str(tree)
    sign, left, right = tree
    product = sign == "*"
    text = f"{_show_tree(left, product)} {sign} {_show_tree(right, product, True)}"
    # A right operand of the same rank keeps its brackets: a - (b + c), a * (b * c).
    needs = (in_product and not product) or (on_right and (in_product or not product))
    return f"({text})" if needs else text


def _next_path(tree: Tree, path: str = "", depth: int = 0) -> tuple[int, bool, str]:
    """Where the next operation is: the best (depth of brackets, is a product, path to it)."""
    sign, left, right = tree
    product = sign == "*"
    found = []
    for side, child in (("l", left), ("r", right)):
        if not isinstance(child, int):
            lower = child[0] != "*" and (product or side == "r")
            bracket = lower or (child[0] == "*" and product and side == "r")
            found.append(_next_path(child, path + side, depth + bracket))
    if not found:
        return depth, product, path
    # Deepest bracket first, then products before sums, then the leftmost: max keeps the first.
    return max(found, key=lambda place: place[:2])


def _reduce(tree: Tree, path: str) -> Tree:
    """The expression with the operation at ``path`` replaced by its value."""
    sign, left, right = tree
    if not path:
        return _result((left, sign, right))
    if path[0] == "l":
        return sign, _reduce(left, path[1:]), right
    return sign, left, _reduce(right, path[1:])


def _arithmetic(rng: random.Random) -> Problem:
    tree, _ = _grow_tree(rng, rng.choice((2, 3, 3, 3, 4, 4, 5)))
    prompt = rng.choice(ASKS).format(_show_tree(tree))
    lines = []
    while not isinstance(tree, int):
        tree = _reduce(tree, _next_path(tree)[2])
        lines.append(_show_tree(tree))
    return Problem("arithmetic", prompt, " = ".join(lines))


# --------------------------------------------------------------------------------------------------
# code: short functions composed of an input, filters, a map and an aggregate


@dataclass(frozen=True)
class Source:
    """What a function runs over; {p} and {q} stand for the names of its parameters."""

    intro: str
    elements: str
    variable: str
    parameters: tuple[str, ...]
    loop: str


# (words after "that", condition, lowest k, highest k); {v} is the element, {k} a number, {a} a
# letter.
NUMBER_FILTERS = (
    ("are even", "{v} % 2 == 0", 0, 0),
    ("are odd", "{v} % 2 == 1", 0, 0),
    ("are greater than {k}", "{v} > {k}", 0, 60),
    ("are less than {k}", "{v} < {k}", 1, 99),
    ("are at least {k}", "{v} >= {k}", 1, 60),
    ("are at most {k}", "{v} <= {k}", 1, 99),
    ("are divisible by {k}", "{v} % {k} == 0", 3, 12),
    ("are not equal to {k}", "{v} != {k}", 0, 30),
)
WORD_FILTERS = (
    ("are longer than {k} letters", "len({v}) > {k}", 1, 12),
    ("are shorter than {k} letters", "len({v}) < {k}", 2, 15),
    ("have {k} letters", "len({v}) == {k}", 1, 12),
    ('start with "{a}"', '{v}.startswith("{a}")', 0, 0),
    ('end with "{a}"', '{v}.endswith("{a}")', 0, 0),
    ('contain "{a}"', '"{a}" in {v}', 0, 0),
)
TEXT_FILTERS = (
    ("are vowels", '{v} in "aeiou"', 0, 0),
    ("are digits", "{v}.isdigit()", 0, 0),
    ("are letters", "{v}.isalpha()", 0, 0),
    ("are upper case", "{v}.isupper()", 0, 0),
    ("are not spaces", '{v} != " "', 0, 0),
    ('are not equal to "{a}"', '{v} != "{a}"', 0, 0),
    ('are greater than "{a}"', '{v} > "{a}"', 0, 0),
    ('are less than "{a}"', '{v} < "{a}"', 0, 0),
)
# (as an order, as a noun, expression, whether the result is a number, lowest k, highest k)
NUMBER_MAPS = (
    ("square each", "the squares of {}", "{v} * {v}", True, 0, 0),
    ("add {k} to each", "{k} more than each of {}", "{v} + {k}", True, 1, 30),
    ("subtract {k} from each", "{k} less than each of {}", "{v} - {k}", True, 1, 30),
    ("multiply each by {k}", "{k} times each of {}", "{v} * {k}", True, 2, 12),
    ("take the absolute value of each", "the absolute values of {}", "abs({v})", True, 0, 0),
    ("take half of each", "half of each of {}", "{v} // 2", True, 0, 0),
)
WORD_MAPS = (
    ("take the length of each", "the lengths of {}", "len({v})", True, 0, 0),
    ("put each in upper case", "the upper case of {}", "{v}.upper()", False, 0, 0),
    ("put each in lower case", "the lower case of {}", "{v}.lower()", False, 0, 0),
    ("reverse each", "the reverse of each of {}", "{v}[::-1]", False, 0, 0),
    ("take the first letter of each", "the first letters of {}", "{v}[0]", False, 0, 0),
    ('add "{a}" to each', '"{a}" added to each of {}', '{v} + "{a}"', False, 0, 0),
)
TEXT_MAPS = (
    ("put each in upper case", "the upper case of {}", "{v}.upper()", False, 0, 0),
    ("put each in lower case", "the lower case of {}", "{v}.lower()", False, 0, 0),
    ("repeat each {k} times", "{k} times each of {}", "{v} * {k}", False, 2, 9),
)
NUMBERS = Source(
    "a list of numbers", "numbers", "x", ("nums", "xs", "values", "data", "items"), "{p}"
)
WORDS = Source("a list of words", "words", "w", ("words", "names", "items", "data"), "{p}")
TEXT = Source("a string", "characters", "c", ("text", "s", "line"), "{p}")
UP_TO = Source(
    "a number", "numbers from 1 to {p}", "i", ("n", "k", "limit", "end"), "range(1, {p} + 1)"
)
BETWEEN = Source(
    "two numbers",
    "numbers from {p} to {q}",
    "i",
    ("a b", "low high", "start end"),
    "range({p}, {q} + 1)",
)
# source, its filters, its maps, whether an element is a number
KINDS = (
    (NUMBERS, NUMBER_FILTERS, NUMBER_MAPS, True),
    (NUMBERS, NUMBER_FILTERS, NUMBER_MAPS, True),
    (WORDS, WORD_FILTERS, WORD_MAPS, False),
    (TEXT, TEXT_FILTERS, TEXT_MAPS, False),
    (UP_TO, NUMBER_FILTERS, NUMBER_MAPS, True),
    (BETWEEN, NUMBER_FILTERS, NUMBER_MAPS, True),
)
# aggregate: (as a noun, as an order)
AGGREGATES = {
    "sum": ("the sum of {}", "return the sum"),
    "product": ("the product of {}", "return the product"),
    "max": ("the largest of {}", "return the largest"),
    "min": ("the smallest of {}", "return the smallest"),
    "count": ("the count of {}", "return how many there are"),
    "list": ("a list of {}", "return them as a list"),
    "sorted": ("{} in order", "return them in order"),
    "first": ("the first of {}", "return the first one"),
    "any": ("whether any of {}", ""),
    "all": ("whether all of {}", ""),
    "join": ("{} joined by a {sep}", "return them joined by a {sep}"),
}
SEPARATORS = {"space": '" "', "comma": '","', "dash": '"-"'}
SHORT_NAMES = _words(
    "solve compute run work check answer task get find make pick keep result value helper apply"
)
NAME_STARTS = _words("get find make pick keep take sum count do list first run")
NAME_ENDS = _words(
    "even odd big small words numbers items values letters result total data all part text list"
    " first best"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _fill(rng: random.Random, texts: tuple[str, ...], low: int, high: int) -> list[str]:
    """Puts one drawn number {k} and one drawn letter {a} into all the texts."""
    number = str(rng.randint(low, high)) if high else ""
    letter = rng.choice(LETTERS)
    return [text.replace("{k}", number).replace("{a}", letter) for text in texts]


def _function_name(rng: random.Random) -> str:
    """A plain name, or one composed of two words."""
    if rng.random() < 0.3:
        return rng.choice(SHORT_NAMES)
    return f"{rng.choice(NAME_STARTS)}_{rng.choice(NAME_ENDS)}"


def _aggregates(number: bool, filtered: bool, mapped: bool) -> list[str]:
    """The aggregates that make sense for what is left after the filters and the map."""
    names = ["list", "sorted"]
    if number:
        names += ["sum", "sum", "product", "max", "min"]
    else:
        names += ["join"]
    if filtered:
        names.append("first")
    if filtered and not mapped:
        names += ["count", "count", "any", "all"]
    return names


def _body(kind: str, expression: str, condition: str, variable: str, loop: str, sep: str) -> str:
    """The lines of the function after its head; one canonical form for each aggregate."""
    head = f"    for {variable} in {loop}:\n"
    indent = "        "
    if condition:
        test, inner = f"{indent}if {condition}:\n", indent + "    "
    else:
        test, inner = "", indent
    start = {"sum": "total = 0", "count": "total = 0", "product": "total = 1"}.get(kind)
    if start:
        added = "+= 1" if kind == "count" else ("*= " if kind == "product" else "+= ") + expression
        return f"    {start}\n{head}{test}{inner}total {added}\n    return total"
    if kind == "first":
        return f"{head}{test}{inner}return {expression}\n    return None"
    if kind in ("any", "all"):
        return f"    return {kind}({condition} for {variable} in {loop})"
    inside = f"{expression} for {variable} in {loop}" + (f" if {condition}" if condition else "")
    if kind == "list":
        return f"    return [{inside}]"
    caller = f"{sep}.join" if kind == "join" else kind
    return f"    return {caller}({inside})"


def _say_noun(kind: str, map_noun: str, elements: str, clauses: list[str], sep: str) -> str:
    """What is returned, as a noun phrase: the sum of the squares of the numbers that are even."""
    noun = AGGREGATES[kind][0].replace("{sep}", sep)
    clause = " and ".join(clauses)
    if kind in ("any", "all"):
        return f"{noun.format('the ' + elements)} {clause}"
    things = f"the {elements} that {clause}" if clauses else f"the {elements}"
    return noun.format(map_noun.format(things))


def _say_orders(kind: str, map_order: str, elements: str, clauses: list[str], sep: str) -> str:
    """What to do, as orders: keep the numbers that are even, square each and return the sum."""
    things = f"the {elements} that {' and '.join(clauses)}" if clauses else f"all the {elements}"
    orders = ["take " + things] + ([map_order] if map_order else [])
    return f"{', '.join(orders)} and {AGGREGATES[kind][1].replace('{sep}', sep)}"


def _say(rng: random.Random, name: str, given: str, noun: str, orders: str) -> str:
    """The whole request, in one of several orders of its clauses."""
    forms = [
        f"Write a function {name} that takes {given} and returns {noun}.",
        f"Given {given}, return {noun}. Name the function {name}.",
        f"Write {name}, a function of {given}. It returns {noun}.",
        f"Return {noun}. The function {name} takes {given}.",
    ]
    if orders:
        forms += [
            f"Write a function {name} that takes {given}. It must {orders}.",
            f"Name the function {name}. Given {given}, {orders}.",
        ]
    return rng.choice(forms)


def _code(rng: random.Random) -> Problem:
    source, filters, maps, number = rng.choice(KINDS)
    explicit = rng.random() < 0.7 or "{p}" in source.elements
    parameter = rng.choice(source.parameters) if explicit else source.parameters[0]
    p, _, q = parameter.partition(" ")
    variable = source.variable
    chosen = rng.sample(filters, rng.choice((0, 1, 1, 2, 2)))
    parts = [_fill(rng, f[:2], f[2], f[3]) for f in chosen]
    order, noun, expression, result_is_number = "", "{}", "{v}", number
    if rng.random() < 0.5:
        picked = rng.choice(maps)
        order, noun, expression = _fill(rng, picked[:3], picked[4], picked[5])
        result_is_number = picked[3]
    kind = rng.choice(_aggregates(result_is_number, bool(parts), bool(order)))
    sep = rng.choice(list(SEPARATORS))
    clauses = [clause for clause, _ in parts]
    elements = source.elements.format(p=p, q=q)
    given = f"{source.intro} {p} and {q}" if q else f"{source.intro} {p}"
    said = _say_noun(kind, noun, elements, clauses, sep)
    orders = _say_orders(kind, order, elements, clauses, sep) if AGGREGATES[kind][1] else ""
    name = _function_name(rng)
    prompt = _say(rng, name, given if explicit else source.intro, said, orders)
    condition = " and ".join(test for _, test in parts).replace("{v}", variable)
    loop, expression = source.loop.format(p=p, q=q), expression.replace("{v}", variable)
    body = _body(kind, expression, condition, variable, loop, SEPARATORS[sep])
    head = f"def {name}({parameter.replace(' ', ', ')}):\n"
    return Problem("code", prompt, head + body)


# --------------------------------------------------------------------------------------------------
# facts: a two-hop question over a shuffled list of facts


# relation: (statement, another wording, the person by this fact, question about a person {d})
ATTRIBUTES = {
    "house": (
        "{p}'s house is {v}.",
        "The house that belongs to {p} is {v}.",
        "the owner of the {v} house",
        "What colour is the house of {d}?",
    ),
    "town": (
        "{p} lives in {v}.",
        "The home of {p} is in the town of {v}.",
        "the person who lives in {v}",
        "In which town does {d} live?",
    ),
    "job": (
        "{p} works as a {v}.",
        "{p} goes to work every day as a {v}.",
        "the person who works as a {v}",
        "What is the job of {d}?",
    ),
    "pet": (
        "{p} has a {v}.",
        "The {v} belongs to {p}.",
        "the owner of the {v}",
        "Which pet does {d} have?",
    ),
    "food": (
        "{p} likes {v}.",
        "Every day {p} eats a lot of {v}.",
        "the person who likes {v}",
        "What does {d} like?",
    ),
    "thing": (
        "{p} owns the {v}.",
        "The {v} belongs to {p}.",
        "the owner of the {v}",
        "What does {d} own?",
    ),
}
VALUES = {"house": COLOURS, "town": TOWNS, "job": JOBS, "pet": ANIMALS, "food": FOODS}
TIES = _words("doctor teacher friend boss cousin neighbour")
TIE = (
    "{p}'s {tie} is {v}.",
    "{v} is the {tie} of {p}.",
    "the person whose {tie} is {v}",
    "Who is the {tie} of {d}?",
)
Table = dict[str, dict[str, str]]  # relation -> person -> value


def _tie_forms(tie: str) -> tuple[str, ...]:
    return tuple(form.replace("{tie}", tie) for form in TIE)


FORMS = ATTRIBUTES | {tie: _tie_forms(tie) for tie in TIES}


def _world(rng: random.Random) -> tuple[list[str], Table]:
    """People and what holds of them; no value is shared, so each fact names one person."""
    people = rng.sample(NAMES, rng.randint(6, 10))
    table: Table = {}
    for relation in rng.sample(list(ATTRIBUTES), rng.randint(3, 4)):
        if relation == "thing":
            things = rng.sample(OBJECTS, len(people))
            values = [f"{rng.choice(COLOURS)} {thing}" for thing in things]
        else:
            values = rng.sample(VALUES[relation], len(people))
        table[relation] = dict(zip(people, values, strict=True))
    for tie in rng.sample(TIES, rng.randint(1, 2)):
        circle = rng.sample(people, len(people))
        table[tie] = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return people, table


def _state(fact: tuple[str, str], table: Table, form: int = 0) -> str:
    """The sentence for a fact ``(relation, person)``, in its canonical form or the other one."""
    relation, person = fact
    return FORMS[relation][form].format(p=person, v=table[relation][person])


def _refer(rng: random.Random, table: Table, relation: str, person: str):
    """A phrase for ``person`` that needs one fact to resolve: (phrase, fact)."""
    if relation in TIES and rng.random() < 0.6:
        by = next(p for p, value in table[relation].items() if value == person)
        return f"{by}'s {relation}", (relation, by)
    return FORMS[relation][2].format(v=table[relation][person]), (relation, person)


def _ask(rng: random.Random, table: Table, relation: str, person: str, phrase: str):
    """A question about the person of ``phrase``: (question, fact, answer)."""
    if relation in TIES and rng.random() < 0.4:
        by = next(p for p, value in table[relation].items() if value == person)
        return f"Whose {relation} is {phrase}?", (relation, by), by
    question = FORMS[relation][3].format(d=phrase)
    return question, (relation, person), table[relation][person]


def _thing_question(rng: random.Random, table: Table, person: str):
    """A question from a person to a thing's place or back: (question, fact, place, answer)."""
    place = rng.choice(PLACES)
    if rng.random() < 0.5:
        return f"Where is the thing that {person} owns?", ("thing", person), place, place
    return f"Who owns the thing in the {place}?", ("thing", person), place, person


def _place_sentences(rng: random.Random, table: Table, person: str, place: str) -> list[str]:
    """Where the things are: first that of ``person``, then those of some of the others."""
    others = [p for p in table["thing"] if p != person]
    where = [(person, place)]
    free = [p for p in PLACES if p != place]
    where += zip(rng.sample(others, min(5, len(others))), rng.sample(free, 5), strict=False)
    return [f"The {table['thing'][p]} is in the {at}." for p, at in where]


def _two_hops(rng: random.Random, people: list[str], table: Table, things: bool = True):
    """A question about a world: (question, facts it needs, sentences about places, answer)."""
    person = rng.choice(people)
    if things and "thing" in table and rng.random() < 0.3:
        question, fact, place, answer = _thing_question(rng, table, person)
        places = _place_sentences(rng, table, person, place)
        hops = [_state(fact, table), places[0]]
        if answer == person:
            hops.reverse()
        needed = [fact]
    else:
        first, second = rng.sample(list(table), 2)
        phrase, fact = _refer(rng, table, first, person)
        question, fact2, answer = _ask(rng, table, second, person, phrase)
        hops = [_state(fact, table), _state(fact2, table)]
        needed, places = [fact, fact2], []
    return question, needed, places, f"{' '.join(hops)} The answer is {answer}."


def _tell_facts(
    rng: random.Random, people: list[str], table: Table, needed, places: list[str], lines: int
) -> str:
    """The facts needed, the sentences about places and others up to so many lines, shuffled."""
    others = [(r, p) for r in table for p in people if (r, p) not in needed]
    more = lines - len(needed) - len(places)
    kept = needed + rng.sample(others, min(max(more, 0), len(others)))
    told = places + [_state(one, table, int(rng.random() < 0.5)) for one in kept]
    rng.shuffle(told)
    return " ".join(told)


def _facts(rng: random.Random) -> Problem:
    people, table = _world(rng)
    question, needed, places, answer = _two_hops(rng, people, table)
    told = _tell_facts(rng, people, table, needed, places, rng.randint(26, 52))
    return Problem("facts", f"{told} {question}", answer)


def draw_questions(rng: random.Random, count: int) -> tuple[str, list[tuple[str, str]]]:
    """Facts and `count` different questions about them, for training: (facts, (question, answer)s).

    The lists are as long as the family's or shorter. No question makes, with the facts, a
    held-out prompt.
    """
    while True:
        people, table = _world(rng)
        needed, places, asked = [], [], {}
        while len(asked) < count:
            # the things' places are told once, so one question at most is about them
            question, facts, where, answer = _two_hops(rng, people, table, things=not places)
            if question not in asked:
                needed += [fact for fact in facts if fact not in needed]
                places += where
                asked[question] = answer
        # 4 to 52 lines, the fewer the likelier: looking up is learned in short lists first
        lines = round(4 * 13 ** rng.random())
        told = _tell_facts(rng, people, table, needed, places, lines)
        if not any(is_held_out(f"{told} {question}") for question in asked):
            return told, list(asked.items())


# --------------------------------------------------------------------------------------------------
# lists: one operation on a list of numbers


def _join(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def _list_sort(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    down = rng.random() < 0.5
    ask = rng.choice(
        ("Sort these numbers from large to small", "Put in order with the largest first")
        if down
        else ("Sort these numbers from small to large", "Put in order with the smallest first")
    )
    return f"{ask}: {_join(numbers)}", _join(sorted(numbers, reverse=down))


def _list_reverse(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    ask = rng.choice(("Reverse this list", "Write this list from the end to the start"))
    return f"{ask}: {_join(numbers)}", _join(numbers[::-1])


def _list_unique(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    few = [rng.choice(numbers[:5]) for _ in numbers]
    ask = rng.choice(("Keep only the first of equal numbers", "Remove repeated numbers"))
    return f"{ask}: {_join(few)}", _join(list(dict.fromkeys(few)))


def _list_keep(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    limit = rng.randint(min(numbers), max(numbers))
    word, test = rng.choice(
        (
            ("even", lambda n: n % 2 == 0),
            ("odd", lambda n: n % 2 == 1),
            (f"greater than {limit}", lambda n: n > limit),
            (f"less than {limit}", lambda n: n < limit),
        )
    )
    ask = rng.choice(("Keep only the numbers that are", "Which of these numbers are"))
    return f"{ask} {word}: {_join(numbers)}", _join(list(filter(test, numbers))) or "none"


def _list_span(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    high, low = max(numbers), min(numbers)
    ask = rng.choice(("What is the largest minus the smallest", "Subtract smallest from largest"))
    return f"{ask}: {_join(numbers)}", f"{high} - {low} = {high - low}"


def _list_sum(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    k = rng.randint(2, min(4, len(numbers)))
    end, used = rng.choice((("first", numbers[:k]), ("last", numbers[-k:])))
    total, steps = used[0], []
    for number in used[1:]:
        steps.append(f"{total} + {number} = {total + number}")
        total += number
    ask = rng.choice(("Add the", "What is the sum of the"))
    return f"{ask} {end} {k} numbers: {_join(numbers)}", ". ".join(steps)


def _list_interleave(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    half = max(len(numbers) // 2, 2)
    first, second = numbers[:half], (numbers[half:] + numbers[:half])[:half]
    mixed = [n for pair in zip(first, second, strict=True) for n in pair]
    ask = rng.choice(("Take in turn from the lists", "Mix in turn the lists"))
    return f"{ask} {_join(first)} and {_join(second)}", _join(mixed)


def _list_rotate(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    k = rng.randint(1, min(4, len(numbers) - 1))
    if rng.random() < 0.5:
        return f"Move the first {k} to the end: {_join(numbers)}", _join(numbers[k:] + numbers[:k])
    return f"Move the last {k} to the start: {_join(numbers)}", _join(numbers[-k:] + numbers[:-k])


def _list_count(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    few = [rng.choice(numbers[:4]) for _ in numbers]
    one = rng.choice(few)
    count = few.count(one)
    ask = rng.choice((f"How many times is {one} in", f"Count the number {one} in"))
    # The matches are written down before they are counted.
    return f"{ask} the list: {_join(few)}", f"{_join([one] * count)}: {count}"


LIST_OPERATIONS = (
    _list_sort,
    _list_sort,
    _list_reverse,
    _list_unique,
    _list_keep,
    _list_span,
    _list_sum,
    _list_interleave,
    _list_rotate,
    _list_count,
)


def _lists(rng: random.Random) -> Problem:
    numbers = [rng.randint(0, 99) for _ in range(max(rng.randint(3, 10), rng.randint(3, 10)))]
    prompt, answer = rng.choice(LIST_OPERATIONS)(rng, numbers)
    return Problem("lists", prompt, answer)


# --------------------------------------------------------------------------------------------------
# stories: a grammar whose sentences are all filled from the words of the prompt


STORY_ASKS = (
    "Write a story about {name}, a {trait} {kind} who {theme} a {object} in the {place}.",
    "Tell a story about a {trait} {kind} named {name} who {theme} a {object} in the {place}.",
    "Write about how {name}, a {trait} {kind} in the {place}, {theme} a {object}.",
    "In the {place} a {trait} {kind} {theme} a {object}. The name is {name}. Tell the story.",
)
KINDS_OF_HERO = ANIMALS + JOBS
# What happens to the object: (how it starts, how it ends).
THEMES = {
    "finds": (
        "One day {he} found a {object} under a tree.",
        "One morning {he} found an old {object} by the road.",
        "One day {he} saw a {object} in the grass and took it home.",
    ),
    "loses": (
        "One day {he} lost {his} {object} near the river.",
        "One morning {his} old {object} was gone.",
        "One day {he} lost {his} best {object} on the road.",
    ),
    "makes": (
        "One day {he} made a {object} out of old wood.",
        "One morning {he} sat down and made a {object}.",
        "One day {he} made a new {object} with {his} own hands.",
    ),
    "buys": (
        "One day {he} bought a {object} from an old man.",
        "One morning {he} bought a new {object} for one coin.",
        "One day {he} paid all {his} coins for a {object}.",
    ),
}
STORY_SLOTS = (
    (
        "Once a {trait} {kind} named {name} lived in the {place}.",
        "Once there was a {trait} {kind} in the {place} named {name}.",
        "In the {place} there lived a {trait} {kind} named {name}.",
        "{name} was a {trait} {kind} who lived in the {place}.",
    ),
    (
        "{name} wanted to see the sea.",
        "More than all {he} wanted a good friend.",
        "Every day {he} wanted to help the people.",
        "At night {he} wanted to fly to the stars.",
        "{name} wanted to learn a new song.",
    ),
    (),  # the theme's sentence
    (
        "But then a storm came.",
        "But the river was deep and cold.",
        "But night came and {he} was all alone.",
        "But it was cold, and {name} had no food.",
        "But the wind was strong and {name} fell down.",
    ),
    (
        "A {helper} saw {him} and came to help.",
        "Then {he} saw an old {helper}.",
        "Then an old {helper} came down the road.",
        "A {helper} came by with a warm light.",
    ),
    (
        "The {trait} {kind} told the {helper} about the {object}.",
        "{name} was {trait}, but {he} asked the {helper} for help.",
        "The {helper} sat down with the {trait} {kind}.",
        "{name} and the {helper} worked all night.",
    ),
    (
        "In the end {name} came home to the {place} with the {object}.",
        "In the end the {object} made the {place} a happy place.",
        "In the end the {object} stood in the house of {name}.",
        "In the end {name} gave the {object} to the {helper}.",
    ),
    (
        "A good friend is more than gold.",
        "It is good to ask for help.",
        "And {name} was never alone again.",
        "A small {object} can make a big day.",
    ),
)


def _story_words(name: str) -> dict[str, str]:
    """The pronouns that go with a name."""
    if name in SHE:
        return {"he": "she", "his": "her", "him": "her"}
    return {"he": "he", "his": "his", "him": "him"}


def _story_slots(words: dict[str, str]) -> list[tuple[str, ...]]:
    """The alternatives for each sentence, not yet filled, for the theme in ``words``."""
    return [slot or THEMES[words["theme"]] for slot in STORY_SLOTS]


def _stories(rng: random.Random) -> Problem:
    words = {
        "name": rng.choice(NAMES),
        "trait": rng.choice(TRAITS),
        "kind": rng.choice(KINDS_OF_HERO),
        "theme": rng.choice(list(THEMES)),
        "object": rng.choice(OBJECTS),
        "place": rng.choice(PLACES),
    }
    prompt = rng.choice(STORY_ASKS).format(**words)
    words |= _story_words(words["name"])
    words["helper"] = rng.choice([animal for animal in ANIMALS if animal != words["kind"]])
    lines = [rng.choice(slot).format(**words) for slot in _story_slots(words)]
    return Problem("stories", prompt, " ".join(lines))


def _read_story_prompt(prompt: str) -> dict[str, str]:
    """The words that fill the story, found again in its prompt; the lists do not overlap."""
    lists = {
        "name": NAMES,
        "trait": TRAITS,
        "kind": KINDS_OF_HERO,
        "theme": THEMES,
        "object": OBJECTS,
        "place": PLACES,
    }
    present = re.findall(r"[A-Za-z]+", prompt)
    words = {key: next(w for w in present if w in known) for key, known in lists.items()}
    return words | _story_words(words["name"])


def _derivable(words: dict[str, str], text: str) -> bool:
    """Whether the text is one alternative for each sentence, in order, all with the same words."""
    rests = {text + " "}
    for slot in _story_slots(words):
        lines = [line.format(**words) + " " for line in slot]
        rests = {rest[len(line) :] for rest in rests for line in lines if rest.startswith(line)}
    return "" in rests


# --------------------------------------------------------------------------------------------------
# drawing and judging


FAMILIES: dict[str, Callable[[random.Random], Problem]] = {
    "word": _word,
    "arithmetic": _arithmetic,
    "code": _code,
    "facts": _facts,
    "lists": _lists,
    "stories": _stories,
}


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the test part: 1 of 16, decided by a hash of its text alone."""
    return hashlib.blake2b(prompt.encode("utf-8"), digest_size=1).digest()[0] % 16 == 0


def draw(family: str, rng: random.Random, *, held_out: bool) -> Problem:
    """A problem of a family from the test part or from the training part."""
    while True:
        problem = FAMILIES[family](rng)
        if is_held_out(problem.prompt) == held_out:
            return problem


def few_shot(examples: list[Problem], problem: Problem) -> str:
    """A prompt that shows solved examples before the problem's own question.

    The chat template adds the first "Q: " and the last "\\nA:".
    """
    shown = "".join(f"{example.prompt}\nA: {example.answer}\n\nQ: " for example in examples)
    return shown + problem.prompt


def _stated(text: str) -> str | None:
    """What follows the last "The answer is", up to the end of its sentence or line."""
    found = re.findall(r"The answer is[ \n]+([^.\n]*)", text)
    return " ".join(found[-1].split()) if found else None


def _last_number(text: str) -> str | None:
    """The number after the last "=", or the whole text where it is one number."""
    tail = text.rsplit("=", 1)[-1].strip().removesuffix(".")
    return tail if re.fullmatch(r"[0-9]+", tail) else None


def _syntax(text: str) -> str | None:
    """The syntax tree as text, without positions; None where the text is no Python."""
    if len(text) > 4000:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.dump(ast.parse(text.strip()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _same_story(problem: Problem, text: str) -> bool:
    """Whether a text is a story that the grammar can tell for the problem's prompt."""
    words = _read_story_prompt(problem.prompt)
    helpers = [animal for animal in ANIMALS if animal != words["kind"]]
    return any(_derivable(words | {"helper": helper}, text.strip()) for helper in helpers)


def correct(problem: Problem, text: str) -> bool:
    """Whether ``text`` answers the problem; any text is allowed and none is ever run.

    word and facts: what follows "The answer is"; arithmetic: the number after the last "=";
    code: the same syntax tree; lists: the same words; stories: derivable from the grammar.
    """
    if problem.family == "stories":
        return _same_story(problem, text)
    if problem.family == "lists":
        return text.split() == problem.answer.split()
    read = {"arithmetic": _last_number, "code": _syntax}.get(problem.family, _stated)
    found = read(text)
    return found is not None and found == read(problem.answer)
