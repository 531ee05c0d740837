"""Tests of the simulator: real HTTP against a real server, and its pure rooms without either."""
