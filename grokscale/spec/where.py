"""Where a setting was written: file, line and key for messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from grokscale.errors import masked

Path = tuple[str | int, ...]


class Where:
    """Finds the place of a key in what was read.

    source: the file as the user named it.  text: its content, "" where there is none.
    overrides: (path, argument) of every `--set`.  labels: of the arms, in order.
    kept: positions in the file of the arms that are still looked at; `at` takes positions among these.
    """

    def __init__(
        self,
        source: str = "experiment",
        text: str = "",
        overrides: Sequence[tuple[Path, str]] = (),
        labels: Sequence[str | None] = (),
    ) -> None:
        self.source = source
        self.overrides = list(overrides)
        self.labels = list(labels)
        self.kept = list(range(len(self.labels)))
        self._lines = key_lines(text)

    def key(self, path: Path) -> str:
        """The dotted key of a path, arms by label."""
        text = ""
        for i, part in enumerate(path):
            if isinstance(part, str):
                text += f".{_printed(part)}" if text else _printed(part)
            elif i and path[i - 1] == "arm" and part < len(self.labels) and (label := self.labels[part]):
                text += f".{_printed(label)}"
            else:
                text += f"[{part + 1}]"
        return text

    def at(self, path: Path) -> str:
        """ "file:line: key", or "--set argument: key" where the setting came from there."""
        if path[:1] == ("arm",) and len(path) > 1 and isinstance(path[1], int) and path[1] < len(self.kept):
            path = ("arm", self.kept[path[1]], *path[2:])
        wanted = split(path)
        for changed, argument in reversed(self.overrides):
            shorter = min(len(split(changed)), len(wanted))
            if shorter and wanted[:shorter] == split(changed)[:shorter]:
                return f"--set {masked(argument)}" + (f": {self.key(path)}" if split(changed) != wanted else "")
        line = next(
            (self._lines[wanted[:n]] for n in range(len(wanted), 0, -1) if wanted[:n] in self._lines), None
        )
        place = self.source if line is None else f"{self.source}:{line}"
        return f"{place}: {self.key(path)}" if path else place


def key_lines(text: str) -> dict[Path, int]:
    """The line of every key and table header of a TOML text, by path; good enough for a message.

    Keys inside inline tables are found at the line of the table; multi-line strings are skipped.
    """
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    quoted = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not quoted:
            header = re.match(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]", line)
            key = re.match(
                r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""", line
            )
            if header:
                table = _indexed(dotted(header[2]), counts, header[1] == "[[")
                lines.setdefault(table, number)
            elif key:
                lines.setdefault(table + split(dotted(key[1])), number)
        for mark in ('"""', "'''"):
            if quoted in ("", mark) and line.count(mark) % 2:
                quoted = "" if quoted else mark
    return lines


def dotted(key: str) -> Path:
    """The parts of a dotted TOML key; quotes keep dots together."""
    parts = re.findall(r"""((?:"[^"]*"|'[^']*'|[^.])*)\.""", key + ".")
    return tuple(part.strip().strip("\"'") for part in parts)


def shown(value: Any) -> str:
    """A value as TOML writes it, cut to one line, with the name of its type where that is not plain."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**21 else "an integer of more than 21 digits"
    if isinstance(value, str):
        text = masked(value)
        text = text if len(text) <= 40 else text[:37] + "..."
        return '"' + text.encode("unicode_escape").decode().replace('"', '\\"') + '"'
    if isinstance(value, Mapping):
        return "a table" if value else "an empty table"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(shown(one) for one in value[:8])
        return f"[{inner}, ...]" if len(value) > 8 else f"[{inner}]"
    return f"{value} ({type(value).__name__})"


def _printed(part: str) -> str:
    """A part of a key as it is, or quoted where it would end the line or drive a terminal."""
    return part if part.isprintable() else shown(part)


def split(path: Path) -> Path:
    """The path with flat keys taken apart, as the file may have written either."""
    return tuple(one for part in path for one in (part.split(".") if isinstance(part, str) else (part,)))


def _indexed(header: Path, counts: dict[Path, int], is_list: bool) -> Path:
    """The path of a header with the position of every list of tables that it goes through."""
    path: Path = ()
    for i, part in enumerate(header):
        path = (*path, part)
        last = i == len(header) - 1
        if last and is_list:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path
