"""What computes attention on a CUDA card, and what that must be given: the blocks of its mask, the tiles of its kernel.

    auto     what torch chooses: Triton kernels today
    triton   these, and nothing else
    flash    FlashAttention 4 (package flash-attn-4), which torch's FlexAttention calls as its backend FLASH

On CPU, where a model is tried and tested, all are computed alike (cpu.py).
"""

import functools
import importlib.util
from collections.abc import Collection
from typing import Any

import torch

BACKENDS = ("auto", "triton", "flash")

# The one number of `block_size` from which FLASH's own blocks follow.
_FLASH_BLOCK_SIZE = 128
# (queries, keys) of a block for FLASH, by the major compute capability and the greatest head dim of queries, keys and
# values: what forward and backward of flash-attn-4 4.0.0b36 both take (`_get_fwd_config`, `_flash_attn_bwd` and
# `normalize_block_sparse_config` of flash_attn/cute/interface.py). On Hopper the keys are those of one tile; forward on
# Blackwell works on two tiles of 128 queries at once. What is not here has no backward under a mask.
_FLASH_BLOCKS = {
    9: {128: (128, 128), 192: (128, 96), 256: (128, 64)},
    10: {128: (256, 128)},
    11: {128: (256, 128)},
}
# Cards with 99 KB of shared memory for a block of threads, where others have 163 or 227.
_SMALL_CARDS = ((8, 6), (8, 9), (12, 0), (12, 1))
# Tiles for them by dtype and head dim (above, up to), where those that Inductor 2.13 chooses do not fit even without
# pipelining: a backward of 64 x 64 takes 112 KB, a forward of 64 x 64 in float32 144 KB. `python tests/gpu_kernels.py
# --fit` compiles all of them, with --plain those of Inductor. On the other cards all fit.
_SMALL_TILES: dict[tuple[str, int, int], dict[str, int]] = {
    ("half", 128, 256): dict(bwd_BLOCK_M1=32, bwd_BLOCK_N1=64, bwd_BLOCK_M2=64, bwd_BLOCK_N2=32, bwd_num_stages=1),
    ("float32", 128, 255): dict(fwd_BLOCK_M=64, fwd_BLOCK_N=16),  # as Inductor's own for 256
}
FLASH_PACKAGE = "flash_attn.cute"


def check_backend(backend: str, device: torch.device, block_size: int, half: bool) -> None:
    """Raise ValueError for a backend that cannot run on a device, before anything runs there.

    half: whether attention is computed in half precision.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend}: write one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return
    if device.type != "cuda":
        raise ValueError(
            f"backend={backend}: needs a CUDA device, and this run is on {device.type}; leave it out (auto)"
        )
    if backend == "triton" and _missing("triton"):
        raise ValueError("backend=triton: the package triton is not installed; pip install triton")
    if backend != "flash":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability[0] not in _FLASH_BLOCKS:
        raise ValueError(
            f"backend=flash: FlashAttention 4 trains under a mask on Hopper and Blackwell data center cards (sm_90, "
            f"sm_10x, sm_11x), and {torch.cuda.get_device_name(device)} is {_sm(capability)}; leave it out (auto)"
        )
    if _missing(FLASH_PACKAGE):
        raise ValueError(
            f'backend=flash: {FLASH_PACKAGE} is not installed; pip install --pre "flash-attn-4[cu13]" (without [cu13] '
            "for CUDA 12)"
        )
    if not half:
        raise ValueError(
            "backend=flash: takes float16 and bfloat16, and this run computes in another dtype; train with bf16 mixed "
            "precision or leave it out (auto)"
        )
    if block_size != _FLASH_BLOCK_SIZE:
        raise ValueError(
            f"block_size={block_size}: backend=flash has blocks of its own, by card and head dim; leave block_size at "
            f"{_FLASH_BLOCK_SIZE}"
        )


def flash_blocks(capability: tuple[int, int], head_dims: Collection[int]) -> tuple[int, int]:
    """Queries and keys of a block for FLASH. Raises ValueError where it has no kernel for all of the head dims."""
    by_head_dim = _FLASH_BLOCKS.get(capability[0], {})
    for greatest, blocks in by_head_dim.items():
        if max(head_dims) <= greatest and all(8 <= one and one % 8 == 0 for one in head_dims):
            return blocks
    known = f"multiples of 8 up to {max(by_head_dim)}" if by_head_dim else "none"
    raise ValueError(
        f"backend=flash: has no kernel for head dim {', '.join(map(str, sorted(set(head_dims))))} on "
        f"{_sm(capability)}, which takes {known}; leave it out (auto)"
    )


def kernel_options(
    backend: str, device: torch.device, dtype: torch.dtype, head_dims: tuple[int, int], blocks: tuple[int, int]
) -> dict[str, Any]:
    """The `kernel_options` of torch's flex_attention for queries and values of these head dims under a mask of these
    blocks. Raises ValueError for what the FLASH backend has no kernel for."""
    capability = _capability(device)
    if backend == "flash":
        needed = flash_blocks(capability, head_dims)
        if dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"backend=flash: takes float16 and bfloat16, not {dtype}")
        if blocks != needed:
            raise ValueError(
                f"backend=flash: layers of head dims {head_dims} need blocks of {needed}, and their mask has {blocks}; "
                "leave it out (auto)"
            )
        return {"BACKEND": "FLASH"}
    options: dict[str, Any] = {"BACKEND": "TRITON"} if backend == "triton" else {}
    return options | triton_options(capability, max(head_dims), dtype)


def triton_options(capability: tuple[int, int], head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles in place of torch's own, where these do not fit in the card's shared memory; none elsewhere."""
    if capability in _SMALL_CARDS:
        for (kind, above, up_to), options in _SMALL_TILES.items():
            if above < head_dim <= up_to and kind == ("float32" if dtype == torch.float32 else "half"):
                return dict(options)
    return {}


def _capability(device: torch.device) -> tuple[int, int]:
    """Of a CUDA device; (0, 0), which no table has, of another."""
    if device.type != "cuda":
        return 0, 0
    properties = torch.cuda.get_device_properties(device)  # a constant while torch.compile traces
    return properties.major, properties.minor


def _sm(capability: tuple[int, int]) -> str:
    return "sm_{}{}".format(*capability)


@functools.cache
def _missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:  # its parent package
        return True
