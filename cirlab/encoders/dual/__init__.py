"""Dual encoders: an image tower and a text tower that share one space."""
