"""Tests of the spools."""
