"""Chatting with a trained model, and what its replies say of it."""
