"""Packs -> losses: which models can be exact, how they are called, and the check that they are."""
