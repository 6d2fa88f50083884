"""What a person sees on stderr while a sweep runs: on a terminal a table that follows it, elsewhere lines.

Free of everything heavy, so that it can say something before the heavy things are imported.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from grokscale.desk import ArmProgress, Progress

WIDTH = 76  # of the table, on wider terminals too
QUIET_S = 5.0  # without a terminal: seconds between lines while the phase stays the same


def watch(stream: TextIO, title: str, doing: str = "starting") -> LiveTable | PlainLines:
    """What suits the stream: a live table on a terminal, else lines. Enter it, then call it with Progress.

    doing: what is said until it is called.
    """
    return LiveTable(stream, title, doing) if stream.isatty() else PlainLines(stream, title, doing)


class PlainLines:
    """A line when the phase changes or something ended, QUIET_S apart at least."""

    def __init__(self, stream: TextIO, title: str, doing: str) -> None:
        self.stream, self.title, self.doing = stream, title, doing
        self._said: tuple[Any, ...] = ()
        self._at = -QUIET_S

    def __enter__(self) -> Self:
        self._say(f"{self.title}: {self.doing}")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        what = (progress.phase, progress.status)
        counts = tuple((arm.done, arm.grokked) for arm in progress.arms)
        if (what, counts) == self._said or (self._said[:1] == (what,) and now - self._at < QUIET_S):
            return
        self._said, self._at = (what, counts), now
        self._say(" | ".join([headline(self.title, progress), *(arm_line(arm) for arm in progress.arms)]))

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class LiveTable:
    """A rich table, redrawn in place; readable at 60 columns."""

    def __init__(self, stream: TextIO, title: str, doing: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self.title, self.doing = title, doing
        self.progress: Progress | None = None
        self._began = self._heard = time.monotonic()
        self.console: Console = Console(file=stream, highlight=False)
        self._live = Live(
            get_renderable=self.render, console=self.console, refresh_per_second=4, redirect_stdout=False
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def __call__(self, progress: Progress) -> None:
        self.progress, self._heard = progress, time.monotonic()

    def render(self) -> RenderableType:
        """What is on the screen now; the clock goes on between two reports."""
        from rich.console import Group
        from rich.text import Text

        if self.progress is None:
            return Text(f"{self.title}: {self.doing} ({clock(time.monotonic() - self._began)})")
        since = time.monotonic() - self._heard
        head = Text(headline(self.title, self.progress, since), overflow="fold")
        return Group(head, table(self.progress, self.console.width)) if self.progress.arms else head


def table(progress: Progress, width: int) -> Table:
    """A row an arm, in at most `width` columns. Short columns keep their width; the name gives way."""
    from rich import box
    from rich.table import Table

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, width=min(width, WIDTH))
    out.add_column("arm", min_width=8, ratio=1, no_wrap=True, overflow="ellipsis")
    for name, width in (("trials", 6), ("running", 7), ("best", 7), ("grokked", 7)):
        out.add_column(name, justify="right", min_width=width, no_wrap=True)
    for arm in progress.arms:
        out.add_row(
            arm.arm,
            f"{arm.done}/{arm.total}",
            str(arm.running or ""),
            best(arm),
            f"{arm.grokked}/{arm.replicas}",
        )
    return out


def headline(title: str, progress: Progress, since: float = 0.0) -> str:
    """ "quickstart: search (exploratory) 12/24 trials, 0:42, about 1:20 left". since: seconds since that was told."""
    done, total = sum(arm.done for arm in progress.arms), sum(arm.total for arm in progress.arms)
    parts = [f"{title}: {stage(progress.phase)} {done}/{total} trials" if total else f"{title}: {progress.status}"]
    if total and progress.status != f"{progress.phase}: running":
        parts.append(progress.status)
    parts.append(clock(progress.elapsed + since))
    if progress.eta is not None and done < total:
        parts.append(f"about {clock(max(0.0, progress.eta - since))} left")
    if progress.reused:
        parts.append(f"{progress.reused} reused")
    if progress.failed:
        parts.append(f"{progress.failed} FAILED")
    return ", ".join(parts)


def stage(phase: str) -> str:
    """ "search (exploratory)", "race (exploratory)", "confirm"."""
    return phase if phase == "confirm" else f"{phase} (exploratory)"


def arm_line(arm: ArmProgress) -> str:
    line = f"{arm.arm} {arm.done}/{arm.total}, {arm.grokked}/{arm.replicas} grokked"
    return line + (f", best {best(arm)}" if arm.best is not None else "")


def best(arm: ArmProgress) -> str:
    """Steps of the best trial so far: the geometric mean over its seeds."""
    return "" if arm.best is None else f"{arm.best:,.0f}"


def clock(seconds: float) -> str:
    """0:42, 12:05, 3:07:21."""
    whole = int(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
