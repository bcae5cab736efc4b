"""Benchmarks: this service beside real peers, in one run, alternating. See README.md."""
