"""The processes of a run on several GPUs or machines, as torchrun, accelerate or a scheduler starts them."""
