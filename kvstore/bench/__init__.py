"""Benchmarks: each measures its baseline in the same run, interleaved, and checks the content of what it got."""
