"""Triplets from image-caption pairs: an instruction LLM invents a change to each caption."""
