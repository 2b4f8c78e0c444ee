"""The processes of a run: those that torchrun, accelerate or a scheduler starts, and those that prepare its data."""
