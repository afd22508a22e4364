"""Retrieval by dialogue: files of dialogues, and what a method reads of one."""
