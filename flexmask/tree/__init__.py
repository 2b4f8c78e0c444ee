"""Passes -> prefix tree -> rows -> packs."""
