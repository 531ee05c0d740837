"""A program that keeps dead letters in a file, and reads what is said of them."""

from cio_batch import DeadLetter, DeadLetterFile, Refusal


def describe(letter: DeadLetter) -> str:
    """Say what was refused, and why."""
    last: Refusal = letter.last
    name: str = letter.name or letter.kind
    attributes: object = letter.payload.get("attributes")
    return f"{name} {letter.id or ''}: {last.verdict}, {last.reason} {last.field} {last.status} ({attributes})"


async def keep(file: DeadLetterFile, letter: DeadLetter) -> tuple[int, int, str | None]:
    """Write it down, and wait until it is on disk."""
    file.put([letter])
    written: bool = await file.close(timeout=2.0)
    return file.pending if written else -1, file.lost, file.fault


def make() -> DeadLetterFile:
    """Make a small one."""
    return DeadLetterFile("dead.ndjson", max_bytes=1_000_000, backups=3, max_pending=1_000)
