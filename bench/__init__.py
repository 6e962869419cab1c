"""Microbenchmarks: ``python -m bench`` runs all that fit the machine. Results are checked before they are timed."""
