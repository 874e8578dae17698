"""Lessons, glossary and presets: text files written by teachers -> what the page plays.

A lesson is one file of assets/lessons; files are played in the order of their names, and
`2-what-stays.md` is called `what-stays` in a link. An example:

    # Why a cache breaks here
    minutes: 3
    with: gen=32
    prompt: How many apples does Tom have?
    One line that says what it is about.

    ## The first card
    Words, with **bold**, *emphasis*, `code`, [links](https://arxiv.org) and [[cache policy]] or
    [[cache policy|other words]] for a term of the glossary.

    - lists
    1. with numbers, too

    @run lane=none&lane=d2,current_k=16
    @step 12
    @point cache-map
    @do Go to the step that writes the full stop.
    @until step = 14 and lane = 1
    @hint Scrub to the right.

A line that begins with @ tells the page what to do when the card is opened:

    @run QUERY    what to run: a query as in the page's address, added to the lines `with:` and
                  `prompt:` above the cards; settings that are not named have their defaults
    @tab NAME     open a tab        @lane N     show a lane, from 1
    @step N       go to a step, from 1, once the run has reached it
    @clock NAME   step, ms or flops: the clock of the race
    @point NAME   ring a part of the page: one of POINTS, or #id
    @do TEXT      what the reader should do        @hint TEXT    help, shown on request
    @until TEST   when it is done

TEST: comparisons such as `step = 12`, `policy = d2`, `hit_rate >= 80%`, `policy.current_k < 16`,
joined by `and` and `or` (`and` binds closer). Names: those of NUMBERS and WORDS, `policy.KNOB` and
`decoder.KNOB`. The last card of a lesson is a question: it has @do, @until and @hint.

In glossary.md each heading is a term, with any synonyms: `## full pass, whole pass` (a plural s is
understood); its text follows. In presets.md each heading is a guided comparison, with `key: NAME`,
a story, a @run, and `with:` and `prompt:` as in a lesson. `prompt: @port` takes the text under
`## port` in prompts.md. Mistakes raise ValueError with file, line and what is allowed.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import d2cache
from analysis.page.query import CLOCKS, TABS, Asked, Link
from d2cache.bundled import ASSETS
from d2cache.registry import Registered, describe

FOLDER = ASSETS / "lessons"
POINTS = (  # parts of the stage, marked there with `data-point`
    "watch",
    "stats",
    "scrubber",
    "sentence",
    "answer",
    "prompt",
    "cache-map",
    "density-map",
    "rollout-map",
    "order-map",
    "tabs",
    "lanes",
    "clock",
    *(f"{tab}-tab" for tab in TABS),
    "whatif",
)
NUMBERS = {  # of the current run at the current step
    "step": "the current step, from 1",
    "steps": "steps made",
    "lane": "the current lane, from 1",
    "lanes": "lanes on the board",
    "branches": "lanes that are what-ifs",
    "selected": "answer position of the pinned token, from 1",
    "block": "block length",
    "hit_rate": "share of positions that were not recomputed so far",
    "flops": "work so far, no cache = 1",
    "agreement": "share of the written answer tokens that are lane 1's too",
}
WORDS = {  # each with its possible values
    "tab": TABS,
    "clock": CLOCKS,
    "status": ("empty", "running", "paused", "done", "stopped", "failed"),
    "policy": tuple(sorted(d2cache.CachePolicy.registry)),
    "decoder": tuple(sorted(d2cache.Decoder.registry)),
}
DIRECTIVES = ("run", "tab", "step", "lane", "clock", "point", "do", "until", "hint")
ACTS = ("run", "tab", "lane", "step", "clock", "point")  # what a card does, in this order
OPERATORS = ("!=", "<=", ">=", "=", "<", ">")  # of a comparison; longer ones first, for the parser


def lessons(folder: Path = FOLDER) -> list[dict]:
    """All lessons, in the order of their files: {key, title, minutes, summary, cards}.

    A card is {title, blocks, acts, do, until, hint}: acts a list of [name, value], do and hint
    lists of tokens, until as `condition` gives it, each None where the card has none.
    """
    terms = glossary(folder / "glossary.md")
    files = sorted(
        p for p in folder.glob("*.md") if p.stem not in ("glossary", "presets", "prompts")
    )
    return [_Reader(path, terms).lesson() for path in files]


def queries(folder: Path = FOLDER) -> list[str]:
    """What the cards of all lessons run, each once."""
    acts = (dict(card["acts"]) for one in lessons(folder) for card in one["cards"])
    return list(dict.fromkeys(one["run"] for one in acts if "run" in one))


def glossary(path: Path = FOLDER / "glossary.md") -> dict[str, str]:
    """Term or synonym -> its text, plain, in the order of the file."""
    return _named_texts(path)


def _named_texts(path: Path) -> dict[str, str]:
    """What is under each `## name, another name`, by each of the names in small letters."""
    out = {}
    for line, names, lines in _Reader(path).sections():
        text = " ".join(words for _, words in lines if words).strip()
        if not text:
            raise ValueError(
                f"{path.name} line {line}: {names!r:.80} has no text; write it on the lines below"
            )
        for name in (n.strip() for n in names.split(",")):
            if not name or name.lower() in out:
                raise ValueError(
                    f"{path.name} line {line}: {name!r:.80} is defined twice, or empty"
                )
            out[name.lower()] = text
    return out


def presets(path: Path = FOLDER / "presets.md") -> list[dict]:
    """Guided comparisons: {key, title, story, query}, the story as plain text."""
    return [_Reader(path).preset(*section) for section in _Reader(path).sections()]


class _Reader:
    """Reads one file; errors name it and a line."""

    def __init__(self, path: Path, terms: dict[str, str] | None = None):
        self.path, self.terms = path, terms
        self.base = ""  # what every @run is added to
        self.lines = path.read_text(encoding="utf-8").splitlines()

    def fail(self, line: int, words: str):
        raise ValueError(f"{self.path.name} line {line}: {words}")

    def sections(self) -> list[tuple[int, str, list[tuple[int, str]]]]:
        """The text under each `## heading`: (line, heading, [(line, text)])."""
        found: list[tuple[int, str, list[tuple[int, str]]]] = []
        for number, text in enumerate(self.lines, 1):
            if text.startswith("## "):
                found.append((number, text[3:].strip(), []))
            elif found:
                found[-1][2].append((number, text.rstrip()))
        if not found:
            self.fail(1, "there is no heading; start each part with a line such as '## Title'")
        return found

    def lesson(self) -> dict:
        sections = self.sections()
        head = [(n, t.strip()) for n, t in enumerate(self.lines[: sections[0][0] - 1], 1)]
        head = [(n, t) for n, t in head if t]
        title = [t[2:].strip() for _, t in head if t.startswith("# ")]
        timed = [re.fullmatch(r"minutes: *(\d+)", t) for _, t in head]
        minutes = [int(m[1]) for m in timed if m]
        summary = [t for _, t in self.given(head) if not t.startswith(("# ", "minutes:"))]
        if len(title) != 1 or len(minutes) != 1 or len(summary) != 1:
            self.fail(1, "a lesson starts with '# Title', 'minutes: 3' and one line of summary")
        cards = [self.card(*section) for section in sections]
        asks = cards[-1]
        if not (asks["do"] and asks["until"] and asks["hint"]):
            self.fail(sections[-1][0], "the last card is a question: give it @do, @until and @hint")
        return {
            "key": re.sub(r"^\d+-", "", self.path.stem),
            "title": title[0],
            "minutes": minutes[0],
            "summary": summary[0],
            "cards": cards,
        }

    def card(self, line: int, title: str, lines: list[tuple[int, str]]) -> dict:
        words, given = [], {}
        for number, text in lines:
            if not text.startswith("@"):
                words.append((number, text))
                continue
            name, _, value = text[1:].partition(" ")
            if name not in DIRECTIVES:
                self.fail(number, f"@{name} is unknown; allowed are @{', @'.join(DIRECTIVES)}")
            if name in given:
                self.fail(number, f"@{name} is twice on this card; once is allowed")
            given[name] = self.value(number, name, value.strip())
        if ("until" in given) != ("do" in given):
            self.fail(
                line, "@do and @until belong together: what to do, and how to know it is done"
            )
        return {
            "title": title,
            "blocks": self.blocks(words),
            "acts": [[name, given[name]] for name in ACTS if name in given],
            **{name: given.get(name) for name in ("do", "until", "hint")},
        }

    def preset(self, line: int, title: str, lines: list[tuple[int, str]]) -> dict:
        keys = [t[4:].strip() for _, t in lines if t.startswith("key:")]
        runs = [(n, t[4:].strip()) for n, t in lines if t.startswith("@run")]
        words = [t for _, t in self.given(lines) if t and not t.startswith(("key:", "@run"))]
        story = " ".join(words).strip()
        if len(keys) != 1 or len(runs) != 1 or not story:
            self.fail(line, "a preset has 'key: NAME', a story and one '@run QUERY'")
        query = self.value(*runs[0][:1], "run", runs[0][1])
        return {"key": keys[0], "title": title, "story": story, "query": query}

    def value(self, line: int, name: str, text: str):
        """The value of a directive, checked."""
        if not text:
            self.fail(line, f"@{name} has no value; write it after the name")
        if name in ("do", "hint"):
            return self.inline(line, text)
        try:
            if name == "until":
                return condition(text)
            if name == "run":
                return self.query(text)
            if name in ("step", "lane"):
                if not re.fullmatch(r"[1-9]\d{0,3}", text):
                    raise ValueError(f"@{name} is {text!r:.80}; it must be a whole number from 1")
                return int(text)
            elif name != "point" or not re.fullmatch(r"#[\w-]+", text):
                allowed = {"tab": TABS, "clock": CLOCKS, "point": (*POINTS, "#id")}[name]
                if text not in allowed:
                    raise ValueError(f"@{name} is {text!r:.80}; allowed are {', '.join(allowed)}")
        except ValueError as error:
            self.fail(line, str(error))
        return text

    def given(self, lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """Keeps `with:` and `prompt:` for every @run; returns the other lines."""
        said = {"with:": "", "prompt:": ""}
        rest = []
        for number, text in lines:
            name, _, value = text.partition(" ")
            if name in said:
                said[name] = value.strip()
                if name == "prompt:" and said[name].startswith("@"):
                    said[name] = self.prompt(number, said[name][1:])
            else:
                rest.append((number, text))
        prompt = f"prompt={quote(said['prompt:'])}" if said["prompt:"] else ""
        self.base = "&".join(filter(None, (said["with:"], prompt)))
        return rest

    def prompt(self, line: int, name: str) -> str:
        """The prompt of this name in prompts.md, beside this file."""
        known = _named_texts(self.path.with_name("prompts.md"))
        if name not in known:
            self.fail(line, f"prompt @{name} is not in prompts.md; there are {', '.join(known)}")
        return known[name]

    def query(self, text: str) -> str:
        """The full query of a @run, which leaves nothing as the visitor has set it."""
        link = Link.parse("&".join(filter(None, (self.base, text))))
        if link.trace is not None:
            return text
        if not link.settings.get("lanes") or link.branch:
            raise ValueError("@run has no lane; give at least one, such as lane=d2")
        return Asked(**{"prompt": "", **link.settings}).query(**link.view)

    def blocks(self, lines: list[tuple[int, str]]) -> list[dict]:
        """Paragraphs {p: tokens} and lists {ul: [tokens]} or {ol: [tokens]}."""
        parts: list[tuple[str, int, list[str]]] = []
        fresh = True
        for number, text in lines:
            mark = re.match(r"(- |\d+\. )(.*)", text)
            if not text:
                fresh = True
            elif mark:
                parts.append(("ul" if mark[1] == "- " else "ol", number, [mark[2]]))
                fresh = False
            elif fresh:
                parts.append(("p", number, [text]))
                fresh = False
            else:
                parts[-1][2].append(text.strip())
        out: list[dict] = []
        for kind, number, words in parts:
            tokens = self.inline(number, " ".join(words))
            if kind == "p":
                out.append({"p": tokens})
            elif out and kind in out[-1]:
                out[-1][kind].append(tokens)
            else:
                out.append({kind: [tokens]})
        return out

    def inline(self, line: int, text: str) -> list:
        """Text -> tokens: a string, {b|i: tokens}, {code: text}, {term, text}, {href, text}."""
        out, plain, at = [], "", 0

        def put(token):
            nonlocal plain
            if plain:
                out.append(plain)
            plain = ""
            out.append(token)

        while at < len(text):
            for pattern, make in _MARKS:
                found = pattern.match(text, at)
                if found:
                    token = make(self, line, found)
                    at = found.end()
                    put(token)
                    break
            else:
                if text.startswith(("**", "`", "[["), at) or re.match(r"\*\S", text[at:]):
                    shown = text[at : at + 24]
                    self.fail(
                        line,
                        f"{shown!r:.40} is not closed; "
                        "write \\ before a sign that is meant literally",
                    )
                if text[at] == "\\" and at + 1 < len(text) and text[at + 1] in "*`[]\\":
                    at += 1
                plain += text[at]
                at += 1
        return [*out, plain] if plain else out

    def term(self, line: int, name: str, words: str) -> dict:
        if self.terms is not None and find_term(self.terms, name) is None:
            self.fail(
                line,
                f"[[{name}]] is not in glossary.md; add it there, or write it without brackets",
            )
        return {"term": name.lower(), "text": words}

    def link(self, line: int, words: str, address: str) -> dict:
        if not re.fullmatch(r"https://[^\s\"'<>]+", address):
            self.fail(line, f"the link to {address[:60]!r} is not allowed; it must be https://...")
        return {"href": address, "text": words}


def find_term(terms: dict, name: str) -> str | None:
    """The glossary's own name for a term or its plural."""
    name = name.lower()
    return next((n for n in (name, name.removesuffix("s"), name + "s") if n in terms), None)


_MARKS = [
    (re.compile(r"`([^`]+)`"), lambda self, line, m: {"code": m[1]}),
    (
        re.compile(r"\[\[([^\]|]+)(?:\|([^\]]+))?\]\]"),
        lambda self, line, m: self.term(line, m[1].strip(), (m[2] or m[1]).strip()),
    ),
    (re.compile(r"\[([^\]]+)\]\(([^)]*)\)"), lambda self, line, m: self.link(line, m[1], m[2])),
    (
        re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*"),
        lambda self, line, m: {"b": self.inline(line, m[1])},
    ),
    (
        re.compile(r"\*(?=[^\s*])(.+?)(?<=[^\s*])\*"),
        lambda self, line, m: {"i": self.inline(line, m[1])},
    ),
]

_COMPARISON = re.compile(rf"\s*([a-z][\w.]*)\s*({'|'.join(OPERATORS)})\s*([\w.+-]+)(%?)\s*")


def condition(text: str) -> list[list[list]]:
    """A test -> alternatives, each a list of [name, operator, value] that must all hold.

    ValueError says which comparison is wrong, and what is allowed.
    """
    sides = [re.split(r"\band\b", side) for side in re.split(r"\bor\b", text)]
    return [[_compare(one) for one in side] for side in sides]


def _compare(text: str) -> list:
    found = _COMPARISON.fullmatch(text)
    if not found:
        raise ValueError(
            f"{text.strip()!r:.80} is not a comparison; write NAME, one of = != < <= > >=, "
            "and a value"
        )
    name, operator, value, share = found.groups()
    kind, _, knob = name.partition(".")
    if knob:
        known = sorted({k.name for e in _entries(kind) for k in e["knobs"]})
        if knob not in known:
            raise ValueError(f"{name!r:.80} is not a knob; {kind} has {', '.join(known) or 'none'}")
    elif name not in NUMBERS and name not in WORDS:
        raise ValueError(
            f"{name!r:.80} is unknown; known are {', '.join([*NUMBERS, *WORDS])}, "
            "policy.KNOB and decoder.KNOB"
        )
    if name in WORDS:
        if value not in WORDS[name] or operator not in ("=", "!="):
            raise ValueError(
                f"{text.strip()!r:.80}: {name} takes = or != and one of {', '.join(WORDS[name])}"
            )
        return [name, operator, value]
    if knob and value in ("true", "false"):
        return [name, operator, float(value == "true")]
    try:
        return [name, operator, float(value) / (100 if share else 1)]
    except ValueError:
        raise ValueError(
            f"{text.strip()!r:.80}: {value!r:.80} is not a number; give one such as 8 or 80%"
        ) from None


def _entries(kind: str) -> list[dict]:
    bases: dict[str, type[Registered]] = {
        "policy": d2cache.CachePolicy,
        "decoder": d2cache.Decoder,
    }
    return describe(bases[kind].registry) if kind in bases else []
