"""The processes of a run: those on several GPUs or machines, as torchrun, accelerate or a scheduler starts them, and those
that read and render data."""
