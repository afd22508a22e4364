"""Measurements, every one a ratio of two things measured in the same run (`gpu` aside).

A module of this package that has `run() -> list[Row]` is found by `python -m bench`.
"""
