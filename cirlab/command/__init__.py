"""What the command line checks before anything runs, and how it says what is wrong."""
