"""Random changes to bytes, JSON values and XML text."""

import copy
import json
import random
from typing import Any

ODD_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    3.0,
    0.5,
    "",
    "0",
    "1",
    "x",
    "../../etc/passwd",
    "\x1b]0;title\x07\x1b[2J",
    "=cmd|'/C calc'!A0",
    "ü\u202e\u0000",
    [],
    [[]],
    [None],
    {},
    {"a": 1},
    [1, 2, 3, 4, 5],
    [[1, 2, 3, 4]],
    "a" * 5000,
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, repeat, move or insert bytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not data:
            return bytes(data)
        place = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind in (0, 1):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            end = min(len(data), place + rng.randrange(1, 200))
            del data[place:end]
        else:
            other, size = rng.randrange(len(data)), rng.randrange(1, 64)
            data[place : place + size] = data[other : other + size]
    return bytes(data)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += _places(part, (*path, key))
    return found


def changed(value: Any, rng: random.Random) -> Any:
    """Return a copy of nested lists and dictionaries with one to four entries removed, repeated or made odd."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 4))):
        path = rng.choice(_places(value))
        if not path:
            if rng.random() < 0.1:
                return copy.deepcopy(rng.choice(ODD_VALUES))
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        key, kind = path[-1], rng.randrange(5)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(key, parent[key])
        elif kind == 2 and isinstance(parent[key], int | float):
            parent[key] = rng.choice((-parent[key], str(parent[key]), parent[key] + 0.5, parent[key] * 1000))
        elif kind == 3 and isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return value


def changed_text(text: str, rng: random.Random) -> str:
    """Change, remove or repeat lines and words of a text."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0 and len(lines) > 1:
            del lines[place]
        elif kind == 1:
            lines.insert(place, lines[place])
        elif kind == 2:
            lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
        elif kind == 3:
            words = lines[place].split(" ")
            words[rng.randrange(len(words))] = str(rng.choice(ODD_VALUES))
            lines[place] = " ".join(words)
        else:
            a, b = lines[place], rng.choice(lines)
            lines[place] = a[: len(a) // 2] + b[len(b) // 2 :]
    return "\n".join(lines)
