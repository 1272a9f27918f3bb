"""bytes -> damaged bytes: what transport, other tools, and people do to files."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

WORDS = [b"null", b"NaN", b"-1", b"1e999", b"[]", b"{}", b'""', b"true", b'"1"', b"<a>", b"</", b"&b;", b"\xff", b"\0"]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "a",
    "nan",
    "../../etc/passwd",
    "/",
    "a\0b",
    "\ud800",
    "\u202e",
    "é" * 300,
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"a": None},
    [0, 0],
    [1e9, 1e9, -1e9, 1e9],
    list(range(9)),
]


def of_text(whole: bytes, chance: random.Random) -> bytes:
    """Change a digit, or cut, overwrite, drop, repeat or replace a token."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 3)):
        data = data or bytearray(b" ")
        start = chance.randrange(len(data))
        end = min(len(data), start + chance.choice([1, 1, 2, 5, 20, 200]))
        kind = chance.randrange(9)
        if kind == 0:
            data[start:end] = chance.choice(WORDS)
        elif kind == 1:
            data[start] = chance.randrange(256)
        elif kind == 2:
            del data[start:end]
        elif kind == 3:
            data[start:start] = data[start:end] * chance.choice([1, 1, 50])
        elif kind == 4:
            del data[start:]
        elif kind == 5:
            digits = [place for place, byte in enumerate(data) if chr(byte).isdigit()] or [0]
            data[chance.choice(digits)] = ord(chance.choice("0123456789-.e"))
        else:
            tokens = [token for token in bytes(data).translate(SPLITTERS).split() if token] or [b" "]
            data = bytearray(bytes(data).replace(chance.choice(tokens), chance.choice([*WORDS, *tokens]), 1))
    return bytes(data)


SPLITTERS = bytes(ord(" ") if byte in b'":,[]{}<>=\n' else byte for byte in range(256))


def of_bytes(whole: bytes, chance: random.Random) -> bytes:
    """Flip, cut, blank, repeat and move bytes; the beginning, where headers are, more often."""
    data = bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 8])):
        data = data or bytearray(b"\0")
        start = chance.randrange(min(len(data), chance.choice([16, 200, len(data)])))
        length = chance.choice([1, 2, 4, 64, 512])
        kind = chance.randrange(7)
        if kind == 0:
            data[start] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[start] = chance.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            del data[start:]
        elif kind == 3:
            data[start : start + length] = bytes(len(data[start : start + length]))
        elif kind == 4:
            del data[start : start + length]
        elif kind == 5:
            data[start:start] = data[start : start + length]
        else:
            data[start : start + length] = chance.randbytes(min(length, len(data) - start))
    return bytes(data)


def of_json(whole: bytes, chance: random.Random) -> bytes:
    """Put odd values at places of a document, or drop and repeat them; now and then damage its text."""
    if chance.random() < 0.3:
        return of_text(whole, chance)
    document = json.loads(whole)
    for _ in range(chance.randint(1, 2)):
        document = _changed(document, chance)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def of_json_lines(whole: bytes, chance: random.Random) -> bytes:
    """Damage one line."""
    lines = whole.splitlines()
    place = chance.randrange(len(lines))
    lines[place] = of_json(lines[place], chance)
    return b"\n".join(lines) + b"\n"


def _changed(value: Any, chance: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return deepcopy(chance.choice(VALUES))
    place = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    kind = chance.randrange(8)
    if kind == 0:
        del value[place]
    elif kind == 1 and isinstance(value, list):
        value.append(value[place])
    elif kind == 1:
        value[chance.choice(["", "id", "x" * 300, str(place).upper()])] = value[place]
    else:
        value[place] = _changed(value[place], chance)
    return value
