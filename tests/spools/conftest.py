"""Where the disk cannot be made small or read-only, the tests that need that are left out, and the run says so."""

from __future__ import annotations

import os
import subprocess
import tempfile

import pytest


def _can_limit_a_disk() -> bool:
    """Root writes everywhere, unless it may mount a disk of its own; anybody else meets limits."""
    if os.geteuid() != 0:
        return True
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=False, capture_output=True)
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=True)
    return mounted.returncode == 0


collect_ignore = [] if _can_limit_a_disk() else ["test_disk_faults.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out."""
    if collect_ignore:
        terminalreporter.line(f"left out, since root without the right to mount writes everywhere: {collect_ignore}")
