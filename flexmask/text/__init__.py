"""Conversations -> passes: what is said, what the template makes of it, its tokens, roles and weights."""
