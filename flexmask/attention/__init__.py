"""The mask rule, and attention under it on CUDA and on CPU."""
