"""What runs: training, evaluation and comparison, put together from `flexmask` by Hydra configuration."""
