"""Run the packs of a step that was not finite again, and name the module that it begins in.

    python -m recipes.replay RUN
    make replay ARGS="runs/<folder>"

A run whose loss or gradient is not finite ends before the step and leaves the step's packs in its folder. Here they run
through the model of the run's newest checkpoint (where there is none, the model that the run began with), in the run's
precision, with an eye on what goes into and comes out of every module, forward and backward. Prints weights that are
not finite, the first module with a value that is not, and the tokens that it stands at with their text. Changes
nothing.
"""

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from flexmask import OnePassTrainer
from flexmask.model.loss import token_losses
from flexmask.model.support import unwrapped
from flexmask.training.nonfinite import SavedPacks, load_packs, newest_packs
from flexmask.tree.packing import Pack
from recipes.configuration.compose import load_run_config
from recipes.configuration.schema import AttentionBackend, TrainConfig
from recipes.models.load import load_model, load_tokenizer
from recipes.run.arguments import collator_of, in_one_process, quiet, training_arguments
from recipes.run.folder import CHECKPOINTS, newest_checkpoint
from recipes.terminal.command import command

SHARDS = "pytorch_model_fsdp_0"  # of a checkpoint of parallel=fsdp
_TOKENS_SHOWN = _WEIGHTS_SHOWN = 3
_TOKENS_BEFORE, _TOKENS_BEHIND = 12, 4


@dataclass(frozen=True)
class Found:
    """The first value that is not finite.

    where: a sentence. module: what computed it. tokens: places in the pack; none where it is of no token.
    """

    where: str
    module: str
    tokens: list[int]


def replay(run: Path) -> str | None:
    """Print where the last step of a run that was not finite begins not to be; returns the module's name, None where
    everything is finite now.

    Raises ValueError for a run that left no packs.
    """
    files = newest_packs(run / CHECKPOINTS)
    config = load_run_config(run)
    if not files:
        raise ValueError(f"{run}: no step of this run was not finite; only such a one leaves packs to replay")
    quiet()
    tokenizer = load_tokenizer(config.model)
    of_files = [load_packs(file) for file in files]
    trainer, weights = trainer_of(config, run, tokenizer, [one for saved in of_files for one in saved.packs])
    print(of_files[0].said)
    print(f"replayed with {weights}")
    for line in _weights_said(unwrapped(trainer.model)):
        print(line)
    for file, saved in zip(files, of_files, strict=True):
        for number, one in enumerate(saved.packs, start=1):
            print(f"{file.name}, pack {number} of {len(saved.packs)}: {len(one):,} tokens of {', '.join(one.rows)}")
            found = first_not_finite(trainer, one, saved.weight)
            if found is not None:
                print(f"  {found.where}")
                for line in _tokens_said(found, one, tokenizer):
                    print(f"  {line}")
                print(f"it begins in {found.module}")
                return found.module
            trainer.model.zero_grad()
    print(_all_finite(of_files[0], weights))
    return None


def _weights_said(model: nn.Module) -> list[str]:
    lines = [
        f"{name}: {broken:,} of its {weight.numel():,} values are not finite"
        for name, weight in model.named_parameters()
        if (broken := int((~torch.isfinite(weight)).sum()))
    ]
    more = [f"... and {len(lines) - _WEIGHTS_SHOWN:,} more weights"] if len(lines) > _WEIGHTS_SHOWN else []
    return lines[:_WEIGHTS_SHOWN] + more


def _all_finite(saved: SavedPacks, weights: str) -> str:
    return (
        f"everything is finite with {weights}: the steps up to {saved.step} have changed the model since. A run of "
        "the same settings with trainer.save_every=1 and another output_dir has the checkpoint right before it"
    )


def trainer_of(
    config: TrainConfig, run: Path, tokenizer: PreTrainedTokenizerBase, packs: Sequence[Pack]
) -> tuple[OnePassTrainer, str]:
    """A Trainer in the run's precision around the model that is replayed, and what that is."""
    config = in_one_process(config)
    if not torch.cuda.is_available():  # the run's kernels are those of another machine
        config = replace(config, attention=replace(config.attention, backend=AttentionBackend.auto))
    model = load_model(config, len(tokenizer), chains=all(map(_is_chain, packs)))
    arguments = training_arguments(config, run, evaluates=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run has said so
        trainer = OnePassTrainer(model, arguments, collator_of(config))
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        return trainer, "the model that the run began with, as it has no checkpoint"
    folder, step = checkpoint
    with tempfile.TemporaryDirectory() as merged:
        trainer._load_from_checkpoint(str(_merged(folder, Path(merged))))
    return trainer, f"the checkpoint of step {step}"


def _merged(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint that one process can load: that itself, or its shards as one file in `folder`."""
    if not (checkpoint / SHARDS).is_dir():
        return checkpoint
    from accelerate.utils import merge_fsdp_weights

    merge_fsdp_weights(str(checkpoint / SHARDS), str(folder))
    return folder


def _is_chain(pack: Pack) -> bool:
    before = pack.previous[0]
    return bool(((before == -1) | (before == torch.arange(len(before)) - 1)).all())


def first_not_finite(trainer: OnePassTrainer, pack: Pack, weight: float) -> Found | None:
    """Run a pack forward and backward as a step does; weight: what its loss is divided by."""
    model = trainer.model.train()
    one = pack.to(trainer.args.device)
    watch = Watch(unwrapped(model))
    with watch.forward(), trainer.accelerator.autocast():
        loss = token_losses(model, one, trainer.data_collator.block_size).total
    if not torch.isfinite(loss):
        return watch.first or Found("every module's values are finite, and the loss is not", "the loss", [])
    watch.first = None  # of a value without weight in a finite loss, such as the score of an expert not to be chosen
    with watch.backward():
        (loss / weight).backward()
    if watch.first is not None:
        return watch.first
    norms = {name: p.grad.norm() for name, p in unwrapped(model).named_parameters() if p.grad is not None}
    if not torch.isfinite(torch.stack(list(norms.values())).norm()):
        largest = max(norms, key=lambda name: norms[name].nan_to_num(posinf=torch.inf))
        return Found(f"every gradient is finite; the norm of that of {largest} is {norms[largest]:.3g}", largest, [])
    return None


class Watch:
    """Keeps the first value that is not finite among what goes into and comes out of the modules of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name or "the model" for name, module in model.named_modules()}
        self.first: Found | None = None
        self._hooks: list[Any] = []
        # The gradient of a tensor is made by what takes it: the modules that it goes into, by the tensor.
        self._takers: dict[int, list[nn.Module]] = {}
        self._kept: list[Tensor] = []  # so that no two have had one id

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Within, the model runs forward."""
        for module in self.names:
            hooks = (module.register_forward_pre_hook(self._enters, with_kwargs=True),)
            self._hooks += [*hooks, module.register_forward_hook(self._leaves)]
        try:
            yield
        finally:
            self._remove()

    @contextlib.contextmanager
    def backward(self) -> Iterator[None]:
        """Within, the gradients of what ran forward are computed."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._of_weight(name)))
        try:
            yield
        finally:
            self._remove()

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _enters(self, module: nn.Module, arguments: tuple, named: dict) -> None:
        given = {key: value for key, value in named.items() if "mask" not in key}  # -inf is what a mask may be made of
        for tensor in _floating((arguments, given)):
            self._note(tensor, self._before, module)
            if tensor.requires_grad:
                self._watch_gradient(tensor).append(module)

    def _leaves(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        for tensor in _floating(output):
            self._note(tensor, self._in, module)
            if tensor.requires_grad:
                self._watch_gradient(tensor, made_by=module)

    def _watch_gradient(self, tensor: Tensor, made_by: nn.Module | None = None) -> list[nn.Module]:
        if id(tensor) not in self._takers:
            takers = self._takers[id(tensor)] = []
            self._kept.append(tensor)
            tensor.register_hook(lambda gradient: self._note(gradient, self._back_through, made_by, takers))
        return self._takers[id(tensor)]

    def _note(self, tensor: Tensor, say: Callable[..., tuple[str, str]], *about: Any) -> None:
        if self.first is None and not (finite := torch.isfinite(tensor)).all():
            at_tokens = tensor.ndim == 3 and tensor.shape[0] == 1
            tokens = (~finite[0]).any(dim=-1).nonzero().flatten().tolist() if at_tokens else []
            where, module = say(*about)
            share = f"{int((~finite).sum()):,} of {tensor.numel():,} values are"
            self.first = Found(f"{where}: {share} not finite", module, tokens)

    def _named(self, module: nn.Module) -> str:
        return f"{self.names[module]} ({type(module).__name__})"

    def _in(self, module: nn.Module) -> tuple[str, str]:
        return f"forward, what comes out of {self._named(module)}, into which only finite values go", self.names[module]

    def _before(self, module: nn.Module) -> tuple[str, str]:
        """Computed by none of the modules that have run, so by the code of the one around."""
        around = self._around(self.names[module])
        return (
            f"forward, what {self._named(around)} gives to {self.names[module]}, in front of which all is finite",
            self.names[around],
        )

    def _back_through(self, made_by: nn.Module | None, takers: Sequence[nn.Module]) -> tuple[str, str]:
        innermost = [
            one for one in takers if not any(self.names[other].startswith(f"{self.names[one]}.") for other in takers)
        ]
        if innermost:
            said = " and ".join(self._named(one) for one in innermost)
            return f"backward, the gradient of what goes into {said}", self.names[innermost[-1]]
        assert made_by is not None  # or it would have a taker
        around = self._around(self.names[made_by])
        return (
            f"backward, the gradient of what {self._named(around)} does behind {self.names[made_by]}",
            self.names[around],
        )

    def _of_weight(self, name: str) -> Callable[[Tensor], None]:
        def note(parameter: Tensor) -> None:
            if self.first is None and not torch.isfinite(parameter.grad).all():
                self.first = Found(f"backward, the gradient of {name} is not finite", name.rpartition(".")[0], [])

        return note

    def _around(self, name: str) -> nn.Module:
        return self.model.get_submodule(name.rpartition(".")[0]) if name != "the model" else self.model


def _floating(value: Any) -> Iterator[Tensor]:
    """The tensors of real numbers in what a module takes or returns."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _floating(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _floating(one)


def _tokens_said(found: Found, pack: Pack, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The first of the tokens, each with what it sees right before it, and what stands behind it in the pack."""
    if not found.tokens:
        return []
    ids, previous = pack.input_ids[0].tolist(), pack.previous[0].tolist()
    lines = [f"at {len(found.tokens):,} of {len(ids):,} tokens, first"]
    begins = [at for at, before in enumerate(previous) if before == -1]
    for token in found.tokens[:_TOKENS_SHOWN]:
        before = [token]
        while len(before) <= _TOKENS_BEFORE and previous[before[-1]] != -1:
            before.append(previous[before[-1]])
        behind = range(token + 1, min(token + 1 + _TOKENS_BEHIND, len(ids)))
        parts = (before[:0:-1], [token], behind)
        left, middle, right = (tokenizer.decode([ids[at] for at in part]).replace("\n", "↵") for part in parts)
        number = sum(at <= token for at in begins) - 1
        row = f" of {pack.rows[number]}" if len(begins) == len(pack.rows) else ""
        lines.append(f"  {token}{row}, position {int(pack.position_ids[0, token])}: {left}»{middle}«{right}")
    return lines


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.replay", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of the run")
    replay(parser.parse_args(arguments).run)


if __name__ == "__main__":
    main()
