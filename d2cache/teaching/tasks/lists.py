"""One operation on a list of numbers."""

import random

from d2cache.teaching.tasks.base import Family, Problem


def _join(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def _sort(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    down = rng.random() < 0.5
    ask = rng.choice(
        ("Sort these numbers from large to small", "Put in order with the largest first")
        if down
        else ("Sort these numbers from small to large", "Put in order with the smallest first")
    )
    return f"{ask}: {_join(numbers)}", _join(sorted(numbers, reverse=down))


def _reverse(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    ask = rng.choice(("Reverse this list", "Write this list from the end to the start"))
    return f"{ask}: {_join(numbers)}", _join(numbers[::-1])


def _unique(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    few = [rng.choice(numbers[:5]) for _ in numbers]
    ask = rng.choice(("Keep only the first of equal numbers", "Remove repeated numbers"))
    return f"{ask}: {_join(few)}", _join(list(dict.fromkeys(few)))


def _keep(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
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


def _span(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    high, low = max(numbers), min(numbers)
    ask = rng.choice(("What is the largest minus the smallest", "Subtract smallest from largest"))
    return f"{ask}: {_join(numbers)}", f"{high} - {low} = {high - low}"


def _sum(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    k = rng.randint(2, min(4, len(numbers)))
    end, used = rng.choice((("first", numbers[:k]), ("last", numbers[-k:])))
    total, steps = used[0], []
    for number in used[1:]:
        steps.append(f"{total} + {number} = {total + number}")
        total += number
    ask = rng.choice(("Add the", "What is the sum of the"))
    return f"{ask} {end} {k} numbers: {_join(numbers)}", ". ".join(steps)


def _interleave(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    half = max(len(numbers) // 2, 2)
    first, second = numbers[:half], (numbers[half:] + numbers[:half])[:half]
    mixed = [n for pair in zip(first, second, strict=True) for n in pair]
    ask = rng.choice(("Take in turn from the lists", "Mix in turn the lists"))
    return f"{ask} {_join(first)} and {_join(second)}", _join(mixed)


def _rotate(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    k = rng.randint(1, min(4, len(numbers) - 1))
    if rng.random() < 0.5:
        return f"Move the first {k} to the end: {_join(numbers)}", _join(numbers[k:] + numbers[:k])
    return f"Move the last {k} to the start: {_join(numbers)}", _join(numbers[-k:] + numbers[:-k])


def _count(rng: random.Random, numbers: list[int]) -> tuple[str, str]:
    few = [rng.choice(numbers[:4]) for _ in numbers]
    one = rng.choice(few)
    count = few.count(one)
    ask = rng.choice((f"How many times is {one} in", f"Count the number {one} in"))
    # The matches are written down before they are counted.
    return f"{ask} the list: {_join(few)}", f"{_join([one] * count)}: {count}"


OPERATIONS = (
    _sort,
    _sort,
    _reverse,
    _unique,
    _keep,
    _span,
    _sum,
    _interleave,
    _rotate,
    _count,
)


class Lists(Family, key="lists"):
    title = "lists"
    order = 4
    answer_length = 64
    weight = 8

    def make(self, rng: random.Random) -> Problem:
        numbers = [rng.randint(0, 99) for _ in range(max(rng.randint(3, 10), rng.randint(3, 10)))]
        prompt, answer = rng.choice(OPERATIONS)(rng, numbers)
        return Problem("lists", prompt, answer)

    def read(self, text: str) -> str | None:
        return " ".join(text.split())
