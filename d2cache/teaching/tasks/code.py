"""Short functions made of an input, filters, a map and an aggregate."""

import ast
import random
import warnings
from dataclasses import dataclass

from d2cache.teaching.tasks.base import Family, Problem


@dataclass(frozen=True)
class Source:
    """What a function runs over; {p} and {q} are the names of its parameters."""

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
SHORT_NAMES = (
    "solve compute run work check answer task get find make pick keep result value helper apply"
).split()
NAME_STARTS = ("get find make pick keep take sum count do list first run").split()
NAME_ENDS = (
    "even odd big small words numbers items values letters result total data all part text list"
    " first best"
).split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _fill(rng: random.Random, texts: tuple[str, ...], low: int, high: int) -> list[str]:
    """The texts with one random number for {k} and one random letter for {a}."""
    number = str(rng.randint(low, high)) if high else ""
    letter = rng.choice(LETTERS)
    return [text.replace("{k}", number).replace("{a}", letter) for text in texts]


def _function_name(rng: random.Random) -> str:
    """A plain name, or one made of two words."""
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
    """The function after its first line; one canonical form for each aggregate."""
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
    """What to do, as orders: take the numbers that are even, square each and return the sum."""
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


def _syntax(text: str) -> str | None:
    """The syntax tree as text, without positions; None where the text is not valid Python."""
    if len(text) > 4000:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.dump(ast.parse(text.strip()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


class Code(Family, key="code"):
    title = "code"
    order = 2
    answer_length = 64
    weight = 8

    def make(self, rng: random.Random) -> Problem:
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

    def read(self, text: str) -> str | None:
        return _syntax(text)
