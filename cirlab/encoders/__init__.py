"""Models that turn images, texts and questions into vectors, words or scores."""
