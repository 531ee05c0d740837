"""Tests of the command line: the real commands in processes of their own, the pure parts in this one."""
