"""What runs: training, evaluation and comparison, put together from `flexmask` by Hydra configuration."""

import logging
import signal
import sys

# transformers imports bitsandbytes (0.50) where it is installed, which then says on every CPU that it has no kernel of
# its own for it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# `python -m recipes.train`: outside of a command's own function, while modules are imported and Hydra composes, Ctrl-C
# ends the process and shows no traceback.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
