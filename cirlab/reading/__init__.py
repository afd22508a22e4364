"""Files that data come in: JSON Lines, JSON documents, archives, folders of one's own."""
