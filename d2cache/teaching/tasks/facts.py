"""A two-hop question over a shuffled list of facts."""

import random

from d2cache.teaching.tasks.base import Family, Problem, is_held_out, stated_answer
from d2cache.teaching.tasks.vocabulary import (
    ANIMALS,
    COLOURS,
    FOODS,
    JOBS,
    NAMES,
    OBJECTS,
    PLACES,
    TOWNS,
)

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
TIES = "doctor teacher friend boss cousin neighbour".split()
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
    """People and facts about them; no value is shared, so each fact identifies one person."""
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
    """A phrase for ``person`` that takes one fact to resolve: (phrase, fact)."""
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
    """Where the things are: first the thing of ``person``, then those of some other people."""
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


def _list_facts(
    rng: random.Random, people: list[str], table: Table, needed, places: list[str], lines: int
) -> str:
    """The needed facts, the sentences about places and other facts, about ``lines`` in all."""
    others = [(r, p) for r in table for p in people if (r, p) not in needed]
    more = lines - len(needed) - len(places)
    kept = needed + rng.sample(others, min(max(more, 0), len(others)))
    sentences = places + [_state(fact, table, int(rng.random() < 0.5)) for fact in kept]
    rng.shuffle(sentences)
    return " ".join(sentences)


def draw_questions(rng: random.Random, count: int) -> tuple[str, list[tuple[str, str]]]:
    """A list of facts and `count` different questions about it, for training.

    -> facts, [(question, answer)]. The lists are at most as long as the family's. The facts with
    any of the questions are no held-out prompt.
    """
    while True:
        people, table = _world(rng)
        needed, places, asked = [], [], {}
        while len(asked) < count:
            # the places of the things are stated once, so at most one question is about them
            question, facts, where, answer = _two_hops(rng, people, table, things=not places)
            if question not in asked:
                needed += [fact for fact in facts if fact not in needed]
                places += where
                asked[question] = answer
        # 4 to 52 lines, short lists more often: looking facts up is learned in them first
        lines = round(4 * 13 ** rng.random())
        listed = _list_facts(rng, people, table, needed, places, lines)
        if not any(is_held_out(f"{listed} {question}") for question in asked):
            return listed, list(asked.items())


class Facts(Family, key="facts"):
    title = "facts"
    order = 3
    answer_length = 32
    weight = 24

    def make(self, rng: random.Random) -> Problem:
        people, table = _world(rng)
        question, needed, places, answer = _two_hops(rng, people, table)
        listed = _list_facts(rng, people, table, needed, places, rng.randint(26, 52))
        return Problem("facts", f"{listed} {question}", answer)

    def read(self, text: str) -> str | None:
        return stated_answer(text)
