"""Bracketed expressions, reduced one operation at a time."""

import random
import re

from d2cache.teaching.tasks.base import Family, Problem
from d2cache.teaching.tasks.operations import result, small_product

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
        if small_product(a, b) and a and b:
            signs += ["*", "*"]
        if signs:
            sign = rng.choice(signs)
            return (sign, left, right), result((a, sign, b))


def _show_tree(tree: Tree, in_product: bool = False, on_right: bool = False) -> str:
    """The expression with the brackets it needs, given where it is in a larger one."""
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
    # the deepest brackets first, then products before sums, then the leftmost: max keeps the first
    return max(found, key=lambda place: place[:2])


def _reduce(tree: Tree, path: str) -> Tree:
    """The expression with the operation at ``path`` replaced by its value."""
    sign, left, right = tree
    if not path:
        return result((left, sign, right))
    if path[0] == "l":
        return sign, _reduce(left, path[1:]), right
    return sign, left, _reduce(right, path[1:])


def _last_number(text: str) -> str | None:
    """The number after the last "=", or the whole text where it is one number."""
    tail = text.rsplit("=", 1)[-1].strip().removesuffix(".")
    return tail if re.fullmatch(r"[0-9]+", tail) else None


class Arithmetic(Family, key="arithmetic"):
    title = "arithmetic"
    order = 1
    answer_length = 64
    weight = 12

    def make(self, rng: random.Random) -> Problem:
        tree, _ = _grow_tree(rng, rng.choice((2, 3, 3, 3, 4, 4, 5)))
        prompt = rng.choice(ASKS).format(_show_tree(tree))
        lines = []
        while not isinstance(tree, int):
            tree = _reduce(tree, _next_path(tree)[2])
            lines.append(_show_tree(tree))
        return Problem("arithmetic", prompt, " = ".join(lines))

    def read(self, text: str) -> str | None:
        return _last_number(text)
