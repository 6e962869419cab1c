"""Microbenchmarks: ``python -m bench.layer``. Results are checked before they are timed."""
