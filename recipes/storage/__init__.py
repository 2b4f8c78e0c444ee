"""Files that are there whole or not at all, and Arrow files that are kept for the next run."""
