"""In which line of a TOML file something stands, which the TOML libraries say for files with syntax errors only."""

import re
from collections import Counter
from collections.abc import Sequence

Keys = tuple[str | int, ...]
"""The way to a value from the top: names of tables and keys, and the number of an entry of an array of tables."""

NAME = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
NAMES = rf"{NAME}(?:\s*\.\s*{NAME})*"
HEADER = re.compile(rf"\s*(\[\[?)\s*({NAMES})\s*\]\]?\s*(?:#.*)?$")
KEY = re.compile(rf"\s*({NAMES})\s*=")


def line_of(text: str, keys: Keys, value: str = "") -> int:
    """Line (from 1) of a key, or of a value that stands under it.

    Args:
        text: the file, which is correct TOML.
        keys: of the value; what is inside `{...}` or a list of several lines is looked for behind its key.
        value: a word to look for under the key, such as one entry of a list; where it is not found, the key counts.

    """
    lines = text.splitlines()
    places = _places(lines)
    found, depth = 0, 0
    for number, place in places:
        shared = min(len(place), len(keys))
        if place[:shared] == keys[:shared] and shared > depth:
            found, depth = number, shared
    if not found:
        return 1
    words = [value] if value else []
    words += [str(key) for key in reversed(keys[depth:]) if isinstance(key, str)]
    end = next((number for number, place in places if number > found and place[:depth] != keys[:depth]), len(lines) + 1)
    for word in words:
        whole = re.compile(rf"(?<![\w%-]){re.escape(word)}(?![\w%-])")
        for number in range(found, end):
            if whole.search(lines[number - 1]):
                return number
    return found


def _places(lines: Sequence[str]) -> list[tuple[int, Keys]]:
    """Line and full name of every table and key that begins a line."""
    section: Keys = ()
    counts: Counter[Keys] = Counter()
    places: list[tuple[int, Keys]] = []
    for number, line in enumerate(lines, start=1):
        if header := HEADER.match(line):
            section = _split(header[2])
            if header[1] == "[[":
                counts[section] += 1
                section = (*section, counts[section] - 1)
            elif counts[section[:1]]:  # [arms.method] belongs to the [[arms]] before it
                section = (section[0], counts[section[:1]] - 1, *section[1:])
            places.append((number, section))
        elif key := KEY.match(line):
            places.append((number, (*section, *_split(key[1]))))
    return places


def _split(names: str) -> Keys:
    return tuple(part.strip("\"'") for part in re.findall(NAME, names))
