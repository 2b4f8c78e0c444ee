"""Where the first value that is not finite is found: in a module, between modules, or on the way back."""

import pytest
import torch
from torch import nn
from trainers import make_trainer, rows_in

from recipes.configuration.compose import compose, save_run_config
from recipes.models.load import load_tokenizer
from recipes.replay import first_not_finite, replay, trainer_of


@pytest.fixture
def trainer(tmp_path):
    return make_trainer(tmp_path, dtype=torch.float32)


def found_in(trainer):
    (one, *_) = trainer.data_collator([trainer.train_dataset[0]])["packs"]
    return first_not_finite(trainer, one, weight=10.0)


def found_in_whole(trainer):
    (row,) = rows_in("one_pass")[0]
    (one,) = trainer.data_collator([[row]])["packs"]
    return first_not_finite(trainer, one, weight=10.0)


class Then(nn.Module):
    """A layer, and a function of what comes out of it."""

    def __init__(self, inner, function):
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, *arguments, **named):
        return self.function(self.inner(*arguments, **named))


def test_a_sound_model_has_none(trainer):
    assert found_in(trainer) is None


# Breaks if what a module computes by itself, such as attention, is laid to the module behind it.
def test_forward(trainer):
    layer = trainer.model.model.layers[1]
    with torch.no_grad():
        layer.mlp.gate_proj.weight[3, 5] = torch.nan
    assert found_in(trainer).module == "model.layers.1.mlp.gate_proj"
    with torch.no_grad():
        layer.mlp.gate_proj.weight[3, 5] = 0
    layer.self_attn.v_proj = Then(layer.self_attn.v_proj, lambda out: out * 1e38)
    layer.self_attn.v_proj.inner.weight.data *= 1e3
    assert found_in(trainer).module == "model.layers.1.self_attn.v_proj"


def test_between_modules(trainer):
    attention = trainer.model.model.layers[0].self_attn
    attention.k_norm.forward = lambda states, k_norm=attention.k_norm: nn.functional.normalize(states) + 1e30
    attention.q_norm.forward = lambda states, q_norm=attention.q_norm: nn.functional.normalize(states) + 1e30
    found = found_in(trainer)
    assert found.module == "model.layers.0.self_attn" and "gives to model.layers.0.self_attn.o_proj" in found.where


# 0 * sqrt(0) is 0, and its gradient 0 * inf. Breaks if a gradient is laid to the module in front of what computes it.
def test_backward(trainer):
    mlp = trainer.model.model.layers[0].mlp
    mlp.up_proj = Then(mlp.up_proj, lambda out: out + 0 * torch.sqrt(0 * out))
    found = found_in(trainer)
    assert found.module == "model.layers.0.mlp.up_proj" and found.where.startswith("backward"), found


def test_the_gradient_of_a_weight(trainer):
    weight = trainer.model.model.layers[0].mlp.down_proj.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    assert found_in(trainer).module == "model.layers.0.mlp.down_proj"


def test_a_norm_that_no_float_holds(trainer):
    weight = trainer.model.model.layers[0].mlp.down_proj.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, 1e38))
    found = found_in(trainer)
    assert found.module == "model.layers.0.mlp.down_proj.weight" and "every gradient is finite" in found.where


def test_a_run_without_such_a_step_has_nothing_to_replay(tmp_path):
    save_run_config(compose(), tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: no step of this run was not finite"):
        replay(tmp_path)


# Breaks if the one process that replays is taken for one of those that the run had.
@pytest.mark.parametrize("parallel", ["parallel.context_parallel=true", "parallel=fsdp"])
def test_a_run_of_several_processes_is_replayed_in_one(tmp_path, parallel):
    config = compose([parallel])
    trainer, weights = trainer_of(config, tmp_path, load_tokenizer(config.model), [])
    assert found_in_whole(trainer) is None and "the model that the run began with" in weights
