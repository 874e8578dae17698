"""The named endpoints: the README's example is answered right, wrong types are one line."""

import re
from pathlib import Path

import pytest

from analysis.page.endpoints import Endpoints, one_line
from analysis.page.host import Host

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


class Told(Exception):
    """What a caller is told."""


@pytest.fixture(scope="module")
def ends():
    return Endpoints(Host({"tiny": "tiny"}))


def test_the_readmes_example_is_answered_right(ends):
    question, lanes = re.search(
        r'question = "(.*?)"\nclient\.predict\(question, lanes=\[(.*?)\]', README
    ).groups()
    given = one_line(ends.compare, Told)(question, lanes=re.findall(r'"(.*?)"', lanes))
    numbers = sorted(map(int, re.findall(r"\d+", question)))
    assert [one["text"] for one in given] == [" ".join(map(str, numbers))] * 2


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("compare", {"lanes": 5}, "lanes is 5; it must be a list of texts"),
        ("compare", {"lanes": "none"}, "lanes is 'none'; it must be a list of texts"),
        ("compare", {"lanes": ["none", 1]}, "lanes is ['none', 1]; it must be a list of texts"),
        ("compare", {"lanes": ["none"], "seed": [1]}, "seed is [1]; it must be a number"),
        ("run", {"gen_length": "abc"}, "gen_length is 'abc'; it must be a number"),
        ("run", {"policy_knobs": [1]}, "policy_knobs is [1]; it must be an object of knobs"),
        ("run", {"policy_knobs": {"current_k": "x"}}, "current_k is 'x'; it must be a whole"),
        ("run", {"policy": 7}, "policy is 7; it must be text"),
        ("run", {"model": None}, "model is None; it must be text"),
        ("run", {"model": "nonesuch"}, "choose one"),
    ],
)
def test_a_wrong_argument_is_one_line(ends, name, given, says):
    with pytest.raises(Told) as error:
        one_line(getattr(ends, name), Told)("?", **given)
    assert says in str(error.value) and "\n" not in str(error.value)
