"""Word problems of one to five steps."""

import random
import re

from d2cache.teaching.tasks.base import Family, Problem, stated_answer
from d2cache.teaching.tasks.operations import Step, result, small_product
from d2cache.teaching.tasks.vocabulary import HE, ITEMS, NAMES, PLACES, SHE, TOWNS


def _show_steps(steps: list[Step]) -> str:
    """The canonical answer: one equation per step, then the result of the last one."""
    shown = "".join(f"{a} {sign} {b} = {result((a, sign, b))}. " for a, sign, b in steps)
    return f"{shown}The answer is {result(steps[-1])}."


# A change to a running count: the sentence and the one or two steps it adds, or None where it does
# not fit the count. {sub} is the person as a subject, {obj} as an object, {other} someone else.
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
    """A person and somebody of the other gender, so that she and he are never ambiguous."""
    if rng.random() < 0.5:
        return {"name": rng.choice(SHE), "other": rng.choice(HE), "he": "she", "him": "her"}
    return {"name": rng.choice(HE), "other": rng.choice(SHE), "he": "he", "him": "him"}


def _tell(rng: random.Random, template: str, who: dict[str, str], items: str) -> str:
    """The filled sentence; the person is a name or a pronoun, at random."""
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
    """A running count of what one person has."""
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
        count = result(steps[-1])
    text, last = _closing(rng, count, goal - len(steps))
    texts.append(text)
    return [_tell(rng, text, who, items) for text in texts], steps + last


def _relate(rng: random.Random, count: int, than: str, who: str, items: str) -> tuple[str, Step]:
    """A sentence that gives the number of ``who`` relative to ``than``, and its step."""
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
        counts.append(result(step))
    if rng.random() < 0.3:
        change = _gain(rng, counts[-1]) if rng.random() < 0.5 else _lose(rng, counts[-1])
        if change is not None and "{other}" not in change[0]:
            text = change[0].replace("{sub}", people[-1]).replace("{items}", items)
            texts.append(text)
            steps += change[1]
            counts[-1] = result(steps[-1])
    text, last = _compare_question(rng, people, counts, items)
    return [*texts, text], steps + last


def _compare_question(
    rng: random.Random, people: list[str], counts: list[int], items: str
) -> tuple[str, list[Step]]:
    """A question about the total, a difference, or the last person's number."""
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
            count = result(steps[-1])
    text, last = _closing(rng, count, 1)
    return [*texts, _tell(rng, text, who, items)], steps + last


def _distract(rng: random.Random, texts: list[str]) -> list[str]:
    """The texts with one more sentence, whose number and person do not matter."""
    used = re.findall(r"[A-Za-z]+", " ".join(texts))
    # not of the gender of the first person, who may be referred to by a pronoun
    first = next(word for word in used if word in NAMES)
    name, items = rng.choice(HE if first in SHE else SHE), rng.choice(ITEMS)
    if name in used or items in used:
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
    """The texts after a sentence without any number."""
    scene = rng.choice(SCENES).format(town=rng.choice(TOWNS), place=rng.choice(PLACES))
    return [scene, *texts]


class Word(Family, key="word"):
    title = "word problems"
    order = 0
    answer_length = 64
    weight = 18

    def make(self, rng: random.Random) -> Problem:
        """A word problem; one with a value outside 0..999 or too many steps is drawn again."""
        while True:
            make = rng.choice((_chain, _chain, _chain, _compare, _compare, _shop, _daily))
            texts, steps = make(rng)
            values_fit = all(0 <= result(step) <= 999 for step in steps)
            products_fit = all(small_product(a, b) for a, sign, b in steps if sign == "*")
            if values_fit and products_fit and 1 <= len(steps) <= 5:
                break
        if rng.random() < 0.2 and len(texts) < 7:
            texts = _distract(rng, texts)
        if rng.random() < 0.4 and len(texts) < 7:
            texts = _set_scene(rng, texts)
        return Problem("word", " ".join(texts), _show_steps(steps))

    def read(self, text: str) -> str | None:
        return stated_answer(text)
