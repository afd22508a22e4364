"""What a run leaves behind, and how it is looked at: folders, tables, comparison, pictures."""
