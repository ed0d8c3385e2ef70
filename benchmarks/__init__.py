"""Measurements, never run by the tests: `python -m benchmarks [NAME...]`.

Each module here but `measure` has a function `run(options) -> dict` and a docstring that says what is set beside what.
Both sides of a ratio are measured in turn in one process, several rounds, and reported as medians.
"""
