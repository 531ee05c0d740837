"""What a tracker counts, and the frozen pictures it gives away.

Rules:

1. Each counter counts its own event; none is computed from the others. ``pending`` and ``in_flight`` are not counters
   but the lengths of the containers that hold those operations.
2. At every instant ``accepted == delivered + rejected + failed + dropped + pending + in_flight``.
"""

from __future__ import annotations

import attrs

from cio_batch.verdicts import Verdict


@attrs.define
class Counters:
    """The counters of one tracker; ``accepted`` stands in the queue, where acceptance happens."""

    delivered: int = 0
    rejected: int = 0
    failed: int = 0
    dropped: int = 0
    calls: int = 0
    retries: int = 0
    dead_letters: int = 0
    last_error: str | None = None

    @property
    def settled(self) -> int:
        """Operations that got a verdict."""
        return self.delivered + self.rejected + self.failed + self.dropped

    def settle(self, verdict: Verdict, count: int) -> None:
        """Count operations that got their verdict."""
        match verdict:
            case Verdict.DELIVERED:
                self.delivered += count
            case Verdict.REJECTED:
                self.rejected += count
            case Verdict.FAILED:
                self.failed += count
            case Verdict.DROPPED:
                self.dropped += count


@attrs.frozen(kw_only=True)
class Stats:
    """A picture of a tracker at one instant.

    Attributes:
        state: ``new``, ``running``, ``hastening`` (SIGTERM came and a host owns the exit: nothing lingers any more),
            ``draining`` or ``closed``.
        accepted: Operations that the tracker took responsibility for.
        delivered: Those that the service accepted.
        rejected: Those that it refused.
        failed: Those whose retries ran out or whose deadline passed.
        dropped: Those that the overflow policy or ``before_enqueue`` let go.
        pending: Those that wait for a call.
        in_flight: Those that are in a call or wait to be sent again.
        pending_bytes: Encoded bytes of the pending ones, without those that are in a spool only.
        in_flight_bytes: Encoded bytes of those in flight.
        calls: HTTP calls begun.
        retries: Calls among them that repeated one.
        last_error: What went wrong last, without content; ``None`` when nothing did.
        paused: Why nothing but probes is sent at the moment (``"status 401"``), or ``None``.
        spooled: Those of the pending ones that are in the spool only, because memory holds enough.
        recovered: Operations that the spool held from an earlier run; part of ``accepted``.
        spool_bytes: What the spool takes on disk, dead letters included.
        spool_fault: Why the spool cannot be written at the moment, or ``None``.
        quarantined: Rows that the spool has set aside, because they are no operation any more.
        dead_letters: Dead letters made since the tracker began.
    """

    state: str
    accepted: int
    delivered: int
    rejected: int
    failed: int
    dropped: int
    pending: int
    in_flight: int
    pending_bytes: int
    in_flight_bytes: int
    calls: int
    retries: int
    last_error: str | None
    paused: str | None
    spooled: int = 0
    recovered: int = 0
    spool_bytes: int = 0
    spool_fault: str | None = None
    quarantined: int = 0
    dead_letters: int = 0


@attrs.frozen(kw_only=True)
class Report:
    """What became of the operations that a ``flush`` or a ``close`` was about.

    Attributes:
        delivered: Operations that the service accepted.
        rejected: Those that it refused.
        failed: Those given up; after ``close`` the ones left are among them, reason ``deadline``, unless a spool keeps
            them.
        dropped: Those let go.
        left: Those that had no verdict when the time was over.
    """

    delivered: int = 0
    rejected: int = 0
    failed: int = 0
    dropped: int = 0
    left: int = 0
