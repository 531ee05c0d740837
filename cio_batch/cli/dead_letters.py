"""``cio-batch dead-letters list | show | export``: what was refused or given up, and why.

Rules:

1. ``list`` prints no content: reasons, names of events, times. ``show`` and ``export`` are asked for just that.
2. Nothing is changed, and a service may write meanwhile.
3. Lines or rows that cannot be read are counted and said; then the exit code is 1.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs
import orjson

from cio_batch.cli.letters import FAULTS, Letters, Wanted, explain, open_letters
from cio_batch.cli.screen import Screen
from cio_batch.dead_letters import DeadLetter, Refusal

_COLUMNS: Final = {
    "number": True,
    "refused (UTC)": False,
    "operation": False,
    "reason": False,
    "field": False,
    "status": True,
    "times": True,
}
_HISTORY: Final = {
    "refused (UTC)": False,
    "verdict": False,
    "reason": False,
    "field": False,
    "status": True,
    "attempts": True,
    "message": False,
}


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for; the names are those of the arguments."""

    action: str
    path: str
    wanted: Wanted = attrs.field(factory=Wanted)
    which: str = ""
    limit: int = 0
    out: str | None = None
    as_json: bool = False


def run(options: Options) -> int:
    """Do it; return the exit code."""
    screen = Screen(as_json=options.as_json)
    actions: dict[str, Callable[[Options, Screen, Letters], int]] = {"list": _list, "show": _show, "export": _export}
    try:
        with open_letters(Path(options.path)) as letters:
            code = actions[options.action](options, screen, letters)
            return max(code, tell_unreadable(screen, letters.unreadable))
    except FAULTS as error:
        return cannot_read(screen, options.path, error)


def cannot_read(screen: Screen, path: str, error: BaseException) -> int:
    """Say that there is nothing to read; return the exit code."""
    screen.note(f"cio-batch: cannot read {path}: {explain(error)}", "bold red")
    return 2


def tell_unreadable(screen: Screen, count: int) -> int:
    """Say that some cannot be read, if so; return the exit code."""
    if not count:
        return 0
    screen.note(f"{count:,} dead letters cannot be read; they stay where they are", "bold red")
    return 1


def moment(seconds: float) -> str:
    """A time as it is printed."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"


def _chosen(options: Options, letters: Letters) -> Iterator[DeadLetter]:
    return (letter for letter in letters.all() if options.wanted.matches(letter))


def _list(options: Options, screen: Screen, letters: Letters) -> int:
    reasons: Counter[tuple[str, str]] = Counter()
    newest: deque[DeadLetter] = deque(maxlen=options.limit)
    for letter in _chosen(options, letters):
        last = letter.last
        reasons[last.verdict, last.reason] += 1
        newest.append(letter)
    total = reasons.total()
    ranked = [(verdict, reason, count) for (verdict, reason), count in reasons.most_common()]
    if options.as_json:
        by_reason = [{"verdict": verdict, "reason": reason, "count": count} for verdict, reason, count in ranked]
        screen.json(
            {
                "total": total,
                "unreadable": letters.unreadable,
                "reasons": by_reason,
                "letters": list(map(_entry, newest)),
            }
        )
        return 0
    if not total:
        screen.say("no dead letters")
        return 0
    older = total - len(newest)
    screen.listing(
        f"{Path(options.path).name}{f' (the newest {len(newest):,})' if older else ''}",
        _COLUMNS,
        (
            (
                str(each.number),
                moment(each.last.at),
                each.name or each.kind,
                each.last.reason,
                each.last.field,
                str(each.last.status or ""),
                len(each.refusals),
            )
            for each in newest
        ),
    )
    screen.listing("by reason", {"verdict": False, "reason": False, "letters": True}, ranked)
    screen.say(f"{total:,} dead letters{f', {older:,} of them older than those above' if older else ''}")
    return 0


def _entry(letter: DeadLetter) -> dict[str, Any]:
    """What the list says of a letter: no content."""
    last = letter.last
    return {
        "number": letter.number,
        "kind": letter.kind,
        "name": letter.name,
        "id": letter.id,
        "verdict": last.verdict,
        "reason": last.reason,
        "field": last.field,
        "status": last.status,
        "attempts": last.attempts,
        "at": last.at,
        "accepted_at": letter.accepted_at,
        "times": len(letter.refusals),
    }


def _show(options: Options, screen: Screen, letters: Letters) -> int:
    which = options.which
    found = [
        letter for letter in letters.all() if which == letter.id or (which.isdigit() and int(which) == letter.number)
    ]
    if not found:
        screen.note(f"cio-batch: there is no dead letter with this number or id in {options.path}", "bold red")
        return 1
    for letter in found:
        if options.as_json:
            screen.json(_document(letter))
            continue
        facts = [
            ("number", str(letter.number)),
            ("kind", letter.kind),
            ("name", letter.name),
            ("id", letter.id or ""),
            ("accepted (UTC)", "" if letter.accepted_at is None else moment(letter.accepted_at)),
        ]
        screen.listing("dead letter", {"": False, " ": False}, [fact for fact in facts if fact[1]])
        screen.listing("refused or given up", _HISTORY, map(_history, letter.refusals))
        screen.json(letter.payload)
    return 0


def _document(letter: DeadLetter) -> dict[str, Any]:
    return {
        "number": letter.number,
        "accepted_at": letter.accepted_at,
        "refusals": [attrs.asdict(refusal) for refusal in letter.refusals],
        "operation": orjson.Fragment(letter.body),
    }


def _history(refusal: Refusal) -> tuple[str, ...]:
    return (
        moment(refusal.at),
        refusal.verdict,
        refusal.reason,
        refusal.field,
        str(refusal.status or ""),
        str(refusal.attempts),
        refusal.message,
    )


def _export(options: Options, screen: Screen, letters: Letters) -> int:
    count = 0
    with contextlib.ExitStack() as stack:
        try:
            target = stack.enter_context(_open_target(options.out))
        except OSError as error:
            screen.note(f"cio-batch: cannot write {options.out}: {error.strerror}", "bold red")
            return 2
        try:
            for letter in _chosen(options, letters):
                target.write(letter.to_line())
                count += 1
            target.flush()
        except BrokenPipeError:  # whoever reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 0
        except OSError as error:
            screen.note(f"cio-batch: writing broke off after {count:,} dead letters: {error.strerror}", "bold red")
            return 1
    if options.out is not None:
        screen.note(f"{count:,} dead letters were written to {options.out}")
    return 0


def _open_target(name: str | None) -> BinaryIO:
    """Where to write to; a file is made, for its owner alone, and must not exist yet."""
    if name is None:
        return os.fdopen(1, "wb", closefd=False)
    return os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
