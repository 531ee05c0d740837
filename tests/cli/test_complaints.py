"""What is said of bad lines: at once, at the end, and not at all."""

from cio_batch.cli.complaints import MAX_RANGES, MAX_SAME, MAX_TEXTS, MAX_TOLD, Complaints


def test_the_same_is_said_a_few_times_and_then_counted() -> None:
    """Rules 1 and 2: the end names the rest by ranges."""
    complaints = Complaints()
    told = [complaints.add(number, "is bad") for number in (*range(1, 9), 11)]

    assert told == [*(f"line {number}: is bad" for number in range(1, MAX_SAME + 1)), None, None, None, None]
    assert list(complaints.rest()) == ["is bad: 4 more lines (6-8, 11)"]


def test_what_is_kept_is_said_in_one_line() -> None:
    """Numbers come in any order."""
    complaints = Complaints()
    complaints.keep([7, *range(14_947, 8, -1), 1], "deadline")

    assert list(complaints.rest()) == ["deadline: 14,941 lines (1, 7, 9-14947)"]


def test_different_things_are_bounded_too() -> None:
    """Rules 1 and 3: so many notes, so many texts, so many ranges."""
    complaints = Complaints()
    told = [complaints.add(number, f"fault {number}") for number in range(1_000)]
    assert sum(note is not None for note in told) == MAX_TOLD
    rest = list(complaints.rest())
    assert len(rest) == MAX_TEXTS - MAX_TOLD + 1
    assert rest[-1].startswith("other faults: 950 lines (50-")

    complaints = Complaints()
    complaints.keep(range(0, 100, 2), "odd")
    (line,) = complaints.rest()
    assert line.startswith("odd: 50 lines (0, 2, ")
    assert line.endswith(f"{2 * (MAX_RANGES - 1)}, …)")
