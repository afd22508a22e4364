"""Multimodal LLMs: they embed, answer, and look at one picture under many prompts."""
