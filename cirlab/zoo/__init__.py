"""Tiny models that were pretrained on the built-in world, loaded by the calls that load real ones.

Names such as `zoo:tiny_clip` stand for the folders here (`cirlab.encoders.names`). Each holds a
manifest that `make zoo` writes: the command that made it, the seed, checksums, what it reaches.
"""
