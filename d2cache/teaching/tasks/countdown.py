"""Reach a number with three or four given ones, each used once: the plan comes before the steps."""

import functools
import random
import re

from d2cache.teaching.tasks.base import Family, Problem, is_held_out
from d2cache.teaching.tasks.operations import Step, result

ASKS = (
    "Make {target} from {numbers}.",
    "Reach {target} with {numbers}.",
    "Use {numbers} to get {target}.",
)
HIGHEST = 99  # of the target and of every step
LARGEST = {3: 12, 4: 9}  # how many numbers are given -> the largest of them


def _next_steps(numbers: tuple[int, ...]) -> list[Step]:
    """The steps worth taking: the larger number first, none that changes nothing."""
    steps = {}
    for i, one in enumerate(numbers):
        for other in numbers[i + 1 :]:
            high, low = max(one, other), min(one, other)
            steps[high, "+", low] = None
            if high - low not in (0, low):
                steps[high, "-", low] = None
            if low > 1:
                steps[high, "*", low] = None
    return [step for step in steps if result(step) <= HIGHEST]


def _after(numbers: tuple[int, ...], step: Step) -> tuple[int, ...]:
    """The numbers left after a step, in ascending order."""
    left = list(numbers)
    left.remove(step[0])
    left.remove(step[2])
    return tuple(sorted((*left, result(step))))


@functools.lru_cache(maxsize=20000)
def _reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    """What the numbers can make, all of them used."""
    if len(numbers) == 1:
        return frozenset(numbers)
    return frozenset().union(*(_reachable(_after(numbers, s)) for s in _next_steps(numbers)))


def _plan(rng: random.Random, numbers: tuple[int, ...], target: int) -> list[Step]:
    """Steps that reach a target that the numbers can make; any of the ways may be drawn."""
    steps = []
    while len(numbers) > 1:
        ways = [s for s in _next_steps(numbers) if target in _reachable(_after(numbers, s))]
        steps.append(rng.choice(ways))
        numbers = _after(numbers, steps[-1])
    return steps


def _series(numbers: list[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _ask(rng: random.Random, numbers: tuple[int, ...], target: int) -> str | None:
    """A prompt with the numbers in any order; None where none of those tried will do.

    What is held out is held out in every order and wording: else a model could have seen the
    problems of the test with their numbers in another order.
    """
    held_out = is_held_out(f"{target} {numbers}")
    for _ in range(60):
        shown = _series(rng.sample(numbers, len(numbers)))
        prompt = rng.choice(ASKS).format(target=target, numbers=shown)
        if is_held_out(prompt) == held_out:
            return prompt
    return None


def _asked(prompt: str) -> tuple[list[int], int]:
    """The numbers and the target of a prompt."""
    target = re.search(r"(?:Make|Reach|get) ([0-9]+)", prompt)
    numbers = re.search(r"(?:[0-9]+, )+[0-9]+ and [0-9]+", prompt)
    return list(map(int, re.findall(r"[0-9]+", numbers.group()))), int(target.group(1))


def _read_step(text: str) -> tuple[Step, int] | None:
    """One step and the result that it states; None where the text is none."""
    number = r"([0-9]{1,6})"
    found = re.fullmatch(rf"{number}\s*([-+*/])\s*{number}\s*=\s*{number}", text.strip())
    if not found:
        return None
    left, sign, right, stated = found.groups()
    return (int(left), sign, int(right)), int(stated)


def _holds(step: Step, stated: int) -> bool:
    """Whether a step is right; a division must be exact."""
    left, sign, right = step
    if sign == "/":
        return right != 0 and left == stated * right
    return result(step) == stated


class Countdown(Family, key="countdown"):
    title = "countdown"
    order = 8
    answer_length = 32
    weight = 36

    def make(self, rng: random.Random) -> Problem:
        prompt = None
        while prompt is None:
            count = rng.choice((3, 3, 3, 4))
            numbers = tuple(sorted(rng.randint(1, LARGEST[count]) for _ in range(count)))
            targets = sorted(target for target in _reachable(numbers) if target >= 10)
            if targets:
                target = rng.choice(targets)
                prompt = _ask(rng, numbers, target)
        steps = _plan(rng, numbers, target)
        lines = [f"{a} {sign} {b} = {result((a, sign, b))}" for a, sign, b in steps]
        return Problem("countdown", prompt, ". ".join(lines))

    def correct(self, problem: Problem, text: str) -> bool:
        """Whether the steps use every number once, each is right and the last gives the target."""
        left, target = _asked(problem.prompt)
        for line in text.strip().removesuffix(".").split("."):
            read = _read_step(line)
            if read is None or not _holds(*read):
                return False
            (one, _, other), stated = read
            for number in (one, other):
                if number not in left:
                    return False
                left.remove(number)
            left.append(stated)
        return left == [target]
