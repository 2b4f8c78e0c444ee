"""Compile the kernels of attention for GPUs that are not there, and say what they take: `docs/performance.md`.

    python tests/gpu_kernels.py           the table of registers, spills, shared memory and instructions, in minutes
    python tests/gpu_kernels.py --fit     for every GPU, head dim and dtype, whether the kernels fit in shared memory

Needs a CUDA build of torch with its triton, in an environment of its own (`pip install torch==2.13.0 numpy`, 5 GB), and
neither a GPU nor a driver. torch's Inductor lowers FlexAttention, forward and backward, with the mask functions and the
kernel options that training uses, and Triton compiles what comes of it. The few questions about the device are answered
from `GPUS`, and loading the machine code is left out. Nothing here says how fast a kernel is.
"""

import argparse
import contextlib
import copy
import io
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CellType, FunctionType, SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
HEADS, KEY_HEADS, LENGTH, BLOCK, WINDOW, CHUNK = 16, 8, 8192, 128, 1024, 2048
DTYPES = ("bfloat16", "float32")  # float16 is as bfloat16


@dataclass(frozen=True)
class Gpu:
    """`shared` is the most shared memory of a thread block in bytes (opt-in), by the CUDA C++ Programming Guide."""

    name: str
    capability: tuple[int, int]
    processors: int
    shared: int


GPUS = {
    "sm_80": Gpu("A100", (8, 0), 108, 166_912),
    "sm_86": Gpu("A10, RTX 30", (8, 6), 84, 101_376),
    "sm_89": Gpu("L4, L40S, RTX 40", (8, 9), 142, 101_376),
    "sm_90": Gpu("H100", (9, 0), 132, 232_448),
    "sm_100": Gpu("B200", (10, 0), 148, 232_448),
    "sm_120": Gpu("RTX 50, RTX PRO 6000", (12, 0), 188, 101_376),
}
# The rows of the table: mask, GPU, head dim.
TABLE = [
    *((mask, "sm_90", 128) for mask in ("causal", "visible_until", "window", "chunks", "key bias")),
    *((mask, "sm_80", 128) for mask in ("causal", "visible_until", "window")),
    *((mask, "sm_100", 128) for mask in ("causal", "visible_until", "window")),
    *((mask, "sm_90", 64) for mask in ("causal", "visible_until", "window")),
    *(("visible_until", gpu, 128) for gpu in ("sm_86", "sm_89", "sm_120")),
    *(("visible_until", gpu, 256) for gpu in GPUS),
]
ATTENTION = "SPARSE_KV_BLOCK_SIZE"  # is in the source of the kernels of FlexAttention, and in no other
HEAD_DIMS = (64, 96, 128, 192, 256)


@dataclass
class Kernel:
    """One compiled kernel of attention."""

    tiles: str
    shared: int
    registers: int = 0
    stored: int = 0
    loaded: int = 0
    instructions: int = 0
    unpipelined: bool = False  # it fits in shared memory only as Inductor's second try, without pipelining
    fits: bool = True


# ---- A device that is described ----


def describe(gpu: Gpu) -> None:
    """Answer what torch, Inductor and Triton ask about the device; once a process."""
    import torch

    if torch.version.cuda is None:
        sys.exit(f"torch {torch.__version__} is no CUDA build; pip install torch==2.13.0 numpy in another environment")
    import torch._dynamo.device_interface as interfaces
    import torch._inductor.config as inductor
    import torch._inductor.runtime.triton_helpers as helpers
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    major, minor = gpu.capability
    properties = SimpleNamespace(
        name=gpu.name,
        major=major,
        minor=minor,
        multi_processor_count=gpu.processors,
        total_memory=80 << 30,
        regs_per_multiprocessor=65_536,
        max_threads_per_multi_processor=2048 if minor == 0 and major < 12 else 1536,
        max_threads_per_block=1024,
        warp_size=32,
        gcnArchName="",
        shared_memory_per_block=49_152,
        shared_memory_per_block_optin=gpu.shared,
        shared_memory_per_multiprocessor=gpu.shared + 1024,
        L2_cache_size=40 << 20,
        is_integrated=0,
    )
    answers: dict[str, Callable] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: gpu.capability,
        "get_compute_capability": lambda device=None: major * 10 + minor,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "exchange_device": lambda index: 0,
        "maybe_exchange_device": lambda index: 0,
    }
    for name, answer in answers.items():
        for owner in (interfaces.CudaInterface, interfaces.CudaInterface.Worker):
            setattr(owner, name, staticmethod(answer))
        if hasattr(torch.cuda, name):
            setattr(torch.cuda, name, answer)
    for name in ("_exchange_device", "_maybe_exchange_device"):
        setattr(torch.cuda, name, lambda index: 0)
    torch.cuda._lazy_init = lambda: None
    torch.cuda.get_rng_state = lambda device="cuda": torch.zeros(16, dtype=torch.uint8)
    torch.cuda.set_rng_state = lambda state, device="cuda": None
    torch.cuda.is_current_stream_capturing = lambda: False
    torch._C._cuda_getCurrentRawStream = lambda device=0: 0
    torch._C._cuda_hasPrimaryContext = lambda index: False
    torch._C._ensureCUDADeviceGuardSet()  # fake CUDA tensors need it, and only a driver would set it
    helpers.set_driver_to_gpu = lambda: None
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", major * 10 + minor, 32),
            get_current_device=lambda: 0,
            get_device_interface=lambda: torch.cuda,
            is_active=lambda: True,
        )
    )
    inductor.compile_threads, inductor.fx_graph_cache, inductor.max_autotune = 1, False, False
    inductor.use_static_triton_launcher = False


@contextlib.contextmanager
def recorded(gpu: Gpu, assemble: bool) -> Iterator[list[Kernel]]:
    """Every FlexAttention kernel that Inductor compiles inside; without `assemble` ptxas is not run."""
    import triton
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from triton.backends.nvidia.compiler import CUDABackend

    found: list[Kernel] = []
    compile_, make_cubin, make_launchers = triton.compile, CUDABackend.make_cubin, CachingAutotuner._make_launchers
    log = io.StringIO()

    def compile_and_listen(*args: Any, **options: Any) -> Any:
        log.truncate(log.seek(0))
        with contextlib.redirect_stdout(log):
            return compile_(*args, **options)

    def record(tuner: Any) -> None:
        tuner.launchers = []
        if ATTENTION not in tuner.fn.src:
            return
        (result,) = tuner.compile_results
        config = copy.deepcopy(result.config)
        unpipelined = result.kernel.metadata.shared > gpu.shared and config.num_stages > 1
        if unpipelined:  # on a device loading fails, and Inductor tries this (`compile_by_disabling_pipelining`)
            config.num_stages = 1
            result = tuner._precompile_config(config)
        kernel = read(result, log.getvalue() if assemble else "")
        kernel.unpipelined, kernel.fits = unpipelined, kernel.shared <= gpu.shared
        found.append(kernel)

    triton.compile, CachingAutotuner._make_launchers = compile_and_listen, record
    CachingAutotuner._dynamic_scale_rblock = lambda tuner: None  # of other kernels, by what a driver says of registers
    if not assemble:
        CUDABackend.make_cubin = lambda *args, **options: b"none"
    try:
        yield found
    finally:
        triton.compile, CUDABackend.make_cubin, CachingAutotuner._make_launchers = compile_, make_cubin, make_launchers


def read(result: Any, log: str) -> Kernel:
    """What a compiled kernel is; log: of ptxas."""
    source = result.kernel.src.fn.src
    tiles = dict(re.findall(r"^\s+(BLOCK_[MN]\d?) : tl\.constexpr = (\d+)", source, re.M))
    metadata = result.kernel.metadata
    shape = "x".join(tiles.values()) + f", {metadata.num_stages} stages, {metadata.num_warps} warps"
    kernel = Kernel(shape, metadata.shared)
    if log:
        kernel.registers = int(re.search(r"Used (\d+) registers", log)[1])
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
        kernel.stored, kernel.loaded = int(spills[1]), int(spills[2])
        kernel.instructions = instructions(result.kernel.asm["cubin"])
    return kernel


def instructions(cubin: bytes) -> int:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    return len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+\S", text, re.M))


# ---- Lowering ----


def mask_of(kind: str) -> Callable:
    """The function that training gives to attention; its values do not matter here."""
    import torch

    from flexmask.attention.masks import visible_until_mask_mod

    if kind == "causal":
        return lambda b, h, q, k: q >= k
    until, positions = torch.full((1, LENGTH), LENGTH, dtype=torch.int32), torch.arange(LENGTH)[None]
    restrictions = {"window": {"window": WINDOW}, "chunks": {"chunk": CHUNK}}
    return visible_until_mask_mod(until, positions, **restrictions.get(kind, {}))


def tensors_of(function: Callable) -> list:
    """The tensors that a function closes over, also through the functions it calls."""
    import torch

    held = [cell.cell_contents for cell in function.__closure__ or ()]
    return [x for one in held for x in ([one] if isinstance(one, torch.Tensor) else tensors_of(one))]


def closing_over(function: Callable, tensors: Iterator) -> Callable:
    """The same function over other tensors, in the order of `tensors_of`."""
    import torch

    held = [cell.cell_contents for cell in function.__closure__ or ()]
    others = [next(tensors) if isinstance(x, torch.Tensor) else closing_over(x, tensors) for x in held]
    return FunctionType(function.__code__, function.__globals__, closure=tuple(map(CellType, others)))


def compile_attention(kind: str, gpu: Gpu, head_dim: int, dtype: str, assemble: bool, options: dict | None) -> list:
    """The forward and the backward kernel; options: None for those of training."""
    import torch
    from torch._higher_order_ops.flex_attention import flex_attention, flex_attention_backward
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    from flexmask.attention.kernels import triton_options
    from flexmask.attention.masks import build_block_mask

    type_ = getattr(torch, dtype)
    if options is None:
        options = triton_options(gpu.capability, head_dim, type_)
    # What torch.nn.attention.flex_attention (2.13) adds in training.
    inner = dict(PRESCALE_QK=False, ROWS_GUARANTEED_SAFE=False, BLOCKS_ARE_CONTIGUOUS=False, WRITE_DQ=True)
    inner |= dict(OUTPUT_LOGSUMEXP=True, OUTPUT_MAX=False, BACKEND="TRITON") | options
    plain = mask_of(kind)
    captured = tensors_of(plain)
    bias = [torch.zeros(HEADS, LENGTH)] if kind == "key bias" else []
    blocks = build_block_mask(torch.full((1, LENGTH), LENGTH, dtype=torch.int32), BLOCK).as_tuple()[:-1]
    lists = [x for x in blocks if isinstance(x, torch.Tensor)]

    def mask(b: Any, h: Any, q: Any, k: Any, *captured: Any) -> Any:
        return closing_over(plain, iter(captured))(b, h, q, k)

    def score(score: Any, b: Any, h: Any, q: Any, k: Any, *bias: Any) -> Any:
        return score + bias[0][h, k] if bias else score

    def joint(score: Any, b: Any, h: Any, q: Any, k: Any, grad: Any, *bias: Any) -> list:
        return [grad, None, None, None, None, *([None] * len(bias))]

    def block_mask(lists: Any) -> tuple:
        moved = iter(lists)
        return (*(next(moved) if isinstance(x, torch.Tensor) else x for x in blocks), mask)

    def split(rest: Any) -> tuple:
        a, b = len(lists), len(lists) + len(bias)
        return block_mask(rest[:a]), head_dim**-0.5, inner, tuple(rest[a:b]), tuple(rest[b:])

    def forward(q: Any, k: Any, v: Any, *rest: Any) -> tuple:
        return flex_attention(q, k, v, score, *split(rest))[:2]

    def backward(q: Any, k: Any, v: Any, out: Any, lse: Any, grad: Any, *rest: Any) -> tuple:
        return flex_attention_backward(q, k, v, out, lse, grad, None, score, joint, *split(rest))[:3]

    with FakeTensorMode(allow_non_fake_inputs=True), recorded(gpu, assemble) as found:
        # As models make them: views of [1, S, H, D].
        q, k, v, out, grad = (
            torch.empty(1, LENGTH, heads, head_dim, dtype=type_, device="cuda").transpose(1, 2)
            for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS, HEADS)
        )
        rest = [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in (*lists, *bias, *captured)]
        lse = torch.empty(1, HEADS, LENGTH, device="cuda")
        for function, inputs in ((forward, [q, k, v, *rest]), (backward, [q, k, v, out, lse, grad, *rest])):
            compile_fx_inner(make_fx(function)(*inputs), inputs)
    return found


# ---- The command ----


def of_gpu(name: str, fit: bool, plain: bool) -> None:
    """Lines of one GPU, in a process of its own: a device can be described only once."""
    gpu = GPUS[name]
    describe(gpu)
    if fit:
        for dtype in DTYPES:
            for head_dim in HEAD_DIMS:
                kernels = compile_attention("visible_until", gpu, head_dim, dtype, False, {} if plain else None)
                words = []
                for way, kernel in zip(("forward", "backward"), kernels, strict=True):
                    state = "fits" if kernel.fits else "DOES NOT FIT"
                    state += " without pipelining only" if kernel.unpipelined and kernel.fits else ""
                    words.append(f"{way} {kernel.tiles}: {kernel.shared:,} of {gpu.shared:,} bytes, {state}")
                print(f"{name} {dtype} {head_dim} | " + " | ".join(words), flush=True)
        return
    for kind, _, head_dim in (row for row in TABLE if row[1] == name):
        cells = [
            f"{k.registers}; {k.stored:,}/{k.loaded:,}; {k.shared / 1024:.1f}; {k.instructions:,}"
            for k in compile_attention(kind, gpu, head_dim, "bfloat16", True, None)
        ]
        print(f"| {kind} | {name}, {head_dim} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="whether kernels fit, by GPU, head dim and dtype")
    parser.add_argument("--plain", action="store_true", help="with --fit: under the options that torch chooses itself")
    parser.add_argument("--gpu", choices=GPUS, action="append", help="only this one; may be repeated")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        logging.disable(logging.CRITICAL)
        of_gpu(given.gpu[0], given.fit, given.plain)
        return
    if not given.fit:
        print("| mask | GPU, head dim | forward | backward |\n|---|---|---|---|", flush=True)
    for name in given.gpu or GPUS:
        with tempfile.TemporaryDirectory() as cache:
            settings = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
            settings |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TRITON_DUMP_PTXAS_LOG": "1"}
            flags = [f"--{flag}" for flag in ("fit", "plain") if getattr(given, flag)]
            arguments = [sys.executable, "-W", "ignore", __file__, "--here", "--gpu", name, *flags]
            if code := subprocess.run(arguments, env=os.environ | settings).returncode:
                sys.exit(code)  # it has said why


if __name__ == "__main__":
    main()
