"""Long work as somebody who waits sees it: a bar on a terminal, a plain line now and then anywhere else; on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from worker.run_words import length

EVERY_S = 10.0
"""How often a plain line is written where there is no terminal."""


class _Read(msgspec.Struct):
    """How far one list is: seconds of its windows that are read, and objects so far."""

    done_s: int = 0
    total_s: int = 0
    objects: int = 0


class Progress:
    """Tells how far a run is. `begin`, then `page` after every page and `stage` at every turn, then `end`; also a context."""

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream or sys.stderr, clock
        self._lists: dict[str, _Read] = {}
        self._stage = ""
        self._began = self._told = clock()
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self, lists: Iterable[str]) -> None:
        """Reading begins: these lists, none of them done."""
        self._lists = {name: _Read() for name in lists}
        self._began = self._told = self._clock()
        self._stage = "reading Stripe"
        if self._stream.isatty():
            columns: tuple[ProgressColumn, ...] = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f}%"),
                _Told(self),
                TimeRemainingColumn(compact=True),
            )
            console = Console(file=self._stream, markup=False, highlight=False, emoji=False)
            self._bar = Bar(*columns, console=console, expand=True, transient=True, refresh_per_second=8)
            self._task = self._bar.add_task(self._stage, total=1.0)
            self._bar.start()
        else:
            self._line()

    def page(self, list_: str, done_seconds: int, total_seconds: int, objects: int) -> None:
        """A page of a list came: seconds of its windows read and asked for, and objects of it, all so far."""
        read = self._lists.setdefault(list_, _Read())
        read.done_s, read.total_s, read.objects = done_seconds, total_seconds, objects
        if self._bar is not None:
            self._bar.update(self._task, completed=self.share)
        elif self._clock() - self._told >= EVERY_S:
            self._line()

    def stage(self, name: str) -> None:
        """The run goes on to something else: `compare`, `heal`, ..."""
        self._stage = name
        if self._bar is not None:
            self._bar.update(self._task, description=name)
        else:
            self._line()

    def end(self) -> None:
        """Take the bar away; the report says the rest. Harmless when nothing was begun."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def objects(self) -> int:
        """Read so far, over all lists."""
        return sum(read.objects for read in self._lists.values())

    @property
    def lists_done(self) -> int:
        """Lists that are read to their end."""
        return sum(1 for read in self._lists.values() if read.total_s and read.done_s >= read.total_s)

    @property
    def share(self) -> float:
        """Of the whole reading, 0 to 1: every list counts the same, for nobody knows beforehand which one is long."""
        parts = [min(1.0, read.done_s / read.total_s) if read.total_s else 0.0 for read in self._lists.values()]
        return sum(parts) / len(parts) if parts else 0.0

    def told(self) -> str:
        """`48,210 objects, 812/s, 3 of 16 lists`."""
        rate = self.objects / max(0.001, self._clock() - self._began)
        return f"{self.objects:,} objects, {rate:,.0f}/s, {self.lists_done} of {len(self._lists)} lists"

    def _line(self) -> None:
        self._told = self._clock()
        spent, share = self._told - self._began, self.share
        left = f", about {length(spent / share - spent)} left" if 0.01 < share < 1 else ""
        self._stream.write(f"{self._stage}: {share:.0%}, {self.told()}{left}\n")
        self._stream.flush()


class _Told(ProgressColumn):
    """The figures beside the bar."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.told(), style="dim")
