"""Records and packs -> a trained model: the Trainer, its arguments and its data."""
