"""What runs: training, evaluation and comparison, put together from `flexmask` by Hydra configuration."""

import logging

# transformers imports bitsandbytes (0.50) where it is installed, which then says on every CPU that it has no kernel of
# its own for it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
