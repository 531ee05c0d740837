"""The ids of events: ULIDs that no other process makes.

Rules:

1. A process that was forked does not repeat its parent's ids, nor those of the parent's other children. The generator
   of ulid_transform is seeded once and knows nothing of forks: its state is copied, so all children would go on with
   the same random bits, and where two of them make an id in the same millisecond it would be the same one. The service
   would take the second event for a repeat of the first.
2. A process that was not forked pays nothing for that.

Use it as ``ids.new_id``: the name is bound anew in a child.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from ulid_transform import bytes_to_ulid, ulid_now, ulid_now_bytes

_RANDOM_BYTES: Final = 10  # of the 16; the first six are the time

new_id: Callable[[], str] = ulid_now
"""Make an id."""


def _begin_in_child() -> None:
    global new_id
    salt = int.from_bytes(os.urandom(_RANDOM_BYTES))

    def new_id_of_child() -> str:
        return bytes_to_ulid((int.from_bytes(ulid_now_bytes()) ^ salt).to_bytes(16))

    new_id = new_id_of_child


os.register_at_fork(after_in_child=_begin_in_child)
