"""Talking to instruction LLMs, in batches."""
