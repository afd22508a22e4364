"""Benchmarks: one file each, official or own files in, queries and rules out."""
