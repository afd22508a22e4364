"""Parts of `bench.gpu`: models from their published sizes, a training step, operations, a table."""
