"""SIGTERM in real processes: plain programs and the servers that host a tracker."""
