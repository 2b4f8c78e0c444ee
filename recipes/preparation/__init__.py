"""Conversations into rows: in processes, and kept on disk for the next run."""
