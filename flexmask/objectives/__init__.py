"""Losses of the log-probabilities of passes, for passes that compete: one a file, each with its formula and source.

The weighted cross-entropy of fine-tuning needs none of this: it is a sum over tokens (`flexmask.model.loss`).
"""
