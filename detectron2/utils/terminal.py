"""Keep what files say from controlling the terminal, and passwords out of it."""

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["PrintableStream", "printable", "without_password"]

# Control characters but for tab and line feed, and the marks that reverse the order of what follows.
_CONTROLS = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def printable(text: str) -> str:
    """Show control characters as escapes, so that a name from a file cannot change the terminal; hide passwords.

    Tabs and line feeds stay.

    >>> printable("a\\x1b[2J")
    'a\\\\x1b[2J'
    """
    return without_password(text).translate(_CONTROLS)


def without_password(text: str) -> str:
    """Leave out the name and password in addresses such as `http://name:password@host/file`."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text) if "://" in text else text


class PrintableStream:
    """An output stream that escapes control characters, but for what begins a progress line."""

    def __init__(self, stream: Any):
        self.unfiltered = stream

    def write(self, text: str) -> int:
        """Write the text with control characters escaped."""
        start = next(start for start in ("\r\x1b[K", "\r", "") if text.startswith(start))
        self.unfiltered.write(start + printable(text[len(start) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unfiltered, name)
