"""``python -m cio_batch demo``: the same as ``cio-batch demo``."""

import sys

from cio_batch.cli import main

if __name__ == "__main__":
    sys.exit(main())
