"""What a command shows: progress and notes on standard error, the result on standard output.

Without a terminal nothing moves: notes come line by line, and the table is plain text.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

Row = tuple[str, str | int | float, str]
"""What, how many, and a remark."""


class Bar:
    """A progress bar; see :meth:`Screen.bar`."""

    def __init__(self, progress: Progress, task: TaskID, total: int | None) -> None:
        self._progress = progress
        self._task = task
        self._total = total

    @property
    def completed(self) -> int:
        """How much of the total is shown as done."""
        return int(self._progress.tasks[self._task].completed)

    def show(self, completed: int, count: str, note: str = "") -> None:
        """Move it.

        Args:
            completed: How much of the total is done; what is more than all of it counts as all.
            count: The same in words.
            note: What else there is to say.
        """
        if self._total is not None:
            completed = min(completed, self._total)
        self._progress.update(self._task, completed=completed, count=count, note=note)


class Screen:
    """The two streams of a command.

    Args:
        as_json: Whether the result is wanted as JSON.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._out = Console()
        self._err = Console(stderr=True)

    @contextlib.contextmanager
    def bar(self, what: str, total: int | None) -> Generator[Bar]:
        """Show a progress bar.

        Args:
            what: What goes on.
            total: What it comes to in the end, where that is known.
        """
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=self._err,
            disable=not self._err.is_terminal,
        )
        with progress:
            yield Bar(progress, progress.add_task(what, total=total, count="", note=""), total)

    def note(self, text: str, style: str = "") -> None:
        """Say something above the progress bars."""
        self._err.print(Text(text, style), soft_wrap=True)

    @contextlib.contextmanager
    def library_log(self, *, muted: bool) -> Generator[None]:
        """Show what the library logs from WARNING on above the progress bars.

        Args:
            muted: Show nothing: the service misbehaves on purpose.
        """
        handler = logging.NullHandler() if muted else _NoteHandler(self)
        # A full queue is how reading waits for sending, and what the tracker says of verdicts is in the summary.
        handler.addFilter(lambda record: record.name not in ("cio_batch.queues", "cio_batch.tracker"))
        logger = logging.getLogger("cio_batch")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def result(
        self,
        title: str,
        rows: Sequence[Row],
        content: dict[str, Any],
        broken: Sequence[str],
        amiss: Sequence[str],
        good: str,
    ) -> None:
        """Print the result.

        Args:
            title: Of the table.
            rows: Of the table.
            content: What the JSON form holds.
            broken: What did not go as promised, a sentence each.
            amiss: What did not go well although no promise broke, likewise.
            good: The last line when nothing is broken or amiss.
        """
        if self._as_json:
            self.json(content)
            return
        table = Table(title=Text(title), title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(style="dim")
        for what, number, remark in rows:
            shown = number if isinstance(number, str) else f"{number:,}"
            table.add_row(Text(what), Text(shown), Text(remark))
        self._out.print(table)
        for sentence in broken:
            self._say(f"{'✗' if self._can_say('✗') else 'BROKEN:'} {sentence}", "bold red")
        for sentence in amiss:
            self._say(sentence, "bold yellow")
        if not broken and not amiss:
            self._say(f"✓ {good}" if self._can_say("✓") else good, "green")

    def json(self, content: object) -> None:
        """Print something as JSON, on standard output."""
        self._out.file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode() + "\n")
        self._out.file.flush()

    def listing(self, title: str, columns: Mapping[str, bool], rows: Iterable[Sequence[object]]) -> None:
        """Print a table on standard output.

        Args:
            title: Of the table.
            columns: Their names, and whether they hold numbers.
            rows: Their cells; what cannot be printed is marked.
        """
        table = Table(title=Text(title), title_justify="left")
        for name, is_number in columns.items():
            table.add_column(name, justify="right" if is_number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(f"{cell:,}" if type(cell) is int else _printable(str(cell))) for cell in row))
        self._out.print(table)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        parts: Sequence[Sequence[Sequence[str]]],
        *,
        marked: Collection[Sequence[str]],
        content: dict[str, Any],
        notes: Sequence[str],
        amiss: Sequence[str],
    ) -> None:
        """Print a result that is a table of numbers.

        Args:
            title: Of the table.
            columns: Their heads.
            parts: Rows in groups, a line between these; a row is a text for each column.
            marked: The rows that stand out.
            content: What the JSON form holds.
            notes: What follows from the table, a sentence each.
            amiss: What did not go well, likewise.
        """
        if self._as_json:
            self.json(content)
            return
        table = Table(title=Text(title), title_justify="left")
        for column in columns:
            table.add_column(Text(column), justify="right")
        for rows in parts:
            for row in rows:
                table.add_row(*map(Text, row), style="bold green" if row in marked else "")
            table.add_section()
        self._out.print(table)
        for sentence in notes:
            self._say(sentence, "")
        for sentence in amiss:
            self._say(sentence, "bold yellow")

    def say(self, text: str, style: str = "") -> None:
        """Print a line of the result, on standard output."""
        self._say(text, style)

    def _say(self, text: str, style: str) -> None:
        self._out.print(Text(text, style), soft_wrap=True)

    def _can_say(self, sign: str) -> bool:
        try:
            sign.encode(self._out.encoding)
        except UnicodeEncodeError:
            return False
        return True


def _printable(text: str) -> str:
    """Keep what somebody else wrote from steering the terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def fault_rows(faults: Collection[tuple[str, int]], *, verbose: bool) -> list[Row]:
    """Say how often each kind of fault came: in one row, or in a row each."""
    if verbose:
        return [(f"fault {kind}", count, "") for kind, count in faults]
    if not faults:
        return []
    return [("faults", sum(count for _, count in faults), " · ".join(f"{kind} {count:,}" for kind, count in faults))]


class _NoteHandler(logging.Handler):
    """Shows log records as notes."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.note(f"{record.levelname.lower()}: {record.getMessage()}", "yellow")
