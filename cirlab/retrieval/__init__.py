"""From vectors to results: the index, exact ranks, the second stage, submission files."""
