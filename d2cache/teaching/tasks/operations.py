"""One operation on two whole numbers, as in the word problems and the expressions."""

Step = tuple[int, str, int]


def result(step: Step) -> int:
    """The value of one step ``(left, sign, right)``; divisions are exact by construction."""
    left, sign, right = step
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    return left * right if sign == "*" else left // right


def small_product(left: int, right: int) -> bool:
    """Whether a product is 2 digits by 1 digit at most, or within the table up to 12 times 12."""
    low, high = min(left, right), max(left, right)
    return high <= 12 or (low <= 9 and high <= 99)
