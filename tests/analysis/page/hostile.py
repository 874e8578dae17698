"""Hostile and broken inputs, each from a seed: random junk, and things in use with pieces torn out,
doubled, swapped or made huge."""

import json
import random
import struct

CANARY = "d2cache-canary"  # a file of this name in the working folder: something was run
RUN_ME = [
    f"__import__('os').system('touch {CANARY}')",
    f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}; touch {CANARY}",
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"!!python/object/apply:os.system ['touch {CANARY}']",
    f"cposix\nsystem\n(S'touch {CANARY}'\ntR.",
    f"<script>fetch('/{CANARY}')</script>",
    "<img src=x onerror=alert(1)>",
    "'; DROP TABLE runs; --",
]
READ_ME = [
    "/etc/passwd",
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "file:///etc/passwd",
    "/proc/self/environ",
    "http://127.0.0.1:9/secret",
    "\\\\host\\share\\x",
    "app.py",
    "C:\\Windows\\win.ini",
]
ODD = [
    "",
    " ",
    "\0",
    "\n\r\t",
    "\ud800",
    "\u202e\u0000\ufeff",
    "%s%n%x{0}{__class__}",
    "é" * 300,
    "🙂" * 50,
    "a" * 5000,
    "_" * 600,
    "[MASK]<|endoftext|><|mdm_mask|>",
    "NaN",
    "1e999",
    "-0",
    "0x10",
    "９",
]
NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]


class Hostile:
    """A source of such inputs; the same seed gives the same ones."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def text(self) -> str:
        return self.rng.choice([*RUN_ME, *READ_ME, *ODD])

    def value(self, depth: int = 2):
        """Anything that JSON can hold, and numbers that it cannot."""
        kind = self.rng.randrange(8 if depth else 6)
        if kind < 2:
            return self.text()
        if kind < 4:
            return self.rng.choice(NUMBERS)
        if kind == 4:
            return self.rng.choice([None, True, False, [], {}])
        if kind == 5:
            return self.rng.randint(-300, 300)
        several = [self.value(depth - 1) for _ in range(self.rng.randrange(4))]
        return several if kind == 6 else {str(self.text()): one for one in several}

    def plain(self):
        """Anything that JSON can hold."""
        return json.loads(json.dumps(self.value()), parse_constant=lambda name: None)

    def broken(self, text: str, marks: str = ",/~=&?:;#%[]{}()<>\"'\\|. \n") -> str:
        """A text with a few mistakes in it."""
        for _ in range(self.rng.randint(1, 4)):
            at = self.rng.randrange(len(text) + 1)
            to = min(len(text), at + self.rng.randint(1, 8))
            middle = self.rng.choice(
                [
                    "",
                    text[at:to] * self.rng.choice([2, 40]),
                    self.rng.choice(marks),
                    self.text()[:200],
                    str(self.rng.choice(NUMBERS)),
                ]
            )
            text = text[:at] + middle + text[to:]
        return text

    def trace(self, good: bytes) -> bytes:
        """A trace file with its header, its length, its arrays or its end spoilt."""
        rng, length = self.rng, struct.unpack("<Q", good[:8])[0]
        head, data = good[8 : 8 + length], good[8 + length :]
        match rng.randrange(8):
            case 0:
                return good[: rng.randrange(len(good))]
            case 1:
                return rng.randbytes(rng.randrange(200))
            case 2:
                size = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63 - 1, 2**64 - 1])
                return struct.pack("<Q", size) + head + data
            case 3:
                return good + rng.randbytes(100)
            case 4:
                spoilt = bytearray(data)
                for _ in range(rng.randint(1, 2000)):
                    spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
                return good[: 8 + length] + bytes(spoilt)
            case 5:
                head = self.broken(head.decode()).encode("utf-8", "replace")
            case 6:
                head = self._header(json.loads(head))
            case 7:
                head = b"[" * rng.choice([10, 100_000])
        return struct.pack("<Q", len(head)) + head + data

    def _header(self, header: dict) -> bytes:
        """A header in which one thing, however deep, is another."""
        meta = header.setdefault("__metadata__", {})
        inner = {name: json.loads(text) for name, text in meta.items() if text[:1] in "{["}
        within: dict = self.rng.choice([header, meta, *inner.values()])
        while isinstance(within, dict) and within:
            name = self.rng.choice(list(within))
            if not isinstance(within[name], dict) or self.rng.random() < 0.4:
                within[name] = self.plain()
                break
            within = within[name]
        for name, one in inner.items():
            if name in meta:
                meta[name] = json.dumps(one)
        return json.dumps(header).encode("utf-8", "replace")
