"""Durable queues beneath a tracker.

base.py        what a tracker expects of a spool
sqlite.py      SqliteSpool: a file of this machine, and the thread that writes it
database.py    its tables and statements
pages.py       such a file as it lies on disk, without SQLite
recovery.py    a file that is damaged, of an older version, or gone
ownership.py   one owner for each file
"""

from cio_batch.spools.base import Contents, Page, Spool, Written
from cio_batch.spools.sqlite import SqliteSpool

__all__ = ["Contents", "Page", "Spool", "SqliteSpool", "Written"]
