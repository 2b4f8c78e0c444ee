"""The model and tokenizer that a run starts from: loaded, built, or with an adapter around it."""
