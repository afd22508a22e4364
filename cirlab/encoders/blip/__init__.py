"""BLIP: two towers to search with, and encoders that read a picture together with words."""
