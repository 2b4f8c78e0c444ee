"""Preference losses against TRL's own trainer, on the same pairs: its code runs, not a copy of its formulas."""

import sys

import numpy as np
import packages
import pytest
import torch
from factories import TINY_MODELS, chatml_tokenizer, random_candidates

from flexmask import lay_out, pack, prepare_model, token_losses
from flexmask.objectives.log_probs import pass_log_probs
from flexmask.objectives.preference import KINDS, Preference

VOCAB, BLOCK = len(chatml_tokenizer()), 16


def pairs():
    """Pairs of one turn each, as TRL takes them: whatever is generated is trained."""
    found = []
    for seed in range(40):
        passes = random_candidates(seed, 2, (1.0, 0.0), VOCAB)
        if len(passes) == 2:
            for p in passes:
                p.loss_weights[p.prompt_length :] = 1
            found.append(passes)
    return found[:5]


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    """TRL's trainer of preferences, from its source package."""
    (folder,) = {path.parent.parent for path in packages.source(packages.TRL).rglob("trl/__init__.py")}
    sys.path.insert(0, str(folder))
    try:
        from trl.trainer import dpo_config, dpo_trainer
    finally:
        sys.path.remove(str(folder))
    return dpo_config.DPOConfig, dpo_trainer


@pytest.mark.network
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_loss_and_gradients_as_trl(kind, trl, tmp_path):
    """Breaks if a log-probability is summed where TRL takes means, beta stands elsewhere, or a token is left out."""
    from datasets import Dataset

    config, module = trl
    model, reference = (TINY_MODELS["qwen3"](VOCAB, torch.float64, seed) for seed in (0, 100))
    text = Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b"}] * 2)
    settings = config(
        str(tmp_path), beta=0.3, loss_type=kind, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False
    )
    model.set_attn_implementation("sdpa")
    theirs = module.DPOTrainer(model, reference, settings, train_dataset=text, processing_class=chatml_tokenizer())
    examples = [
        {
            "prompt_ids": better.input_ids[: better.prompt_length].tolist(),
            "chosen_ids": better.input_ids[better.prompt_length :].tolist(),
            "rejected_ids": worse.input_ids[worse.prompt_length :].tolist(),
        }
        for better, worse in pairs()
    ]
    batch = module.DataCollatorForPreference(pad_token_id=0)(examples)
    model.train()
    expected = theirs.compute_loss(model, batch)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    (one,) = pack([row for passes in pairs() for row in lay_out(passes, "one_pass").rows], 2048)
    prepare_model(reference)
    with torch.no_grad():
        losses = token_losses(reference, one, BLOCK).losses
    one.passes.reference[:] = pass_log_probs(-losses, one).numpy()
    prepare_model(model)
    mine = token_losses(model, one, BLOCK, Preference(kind, 0.3)).total / len(examples)
    mine.backward()
    assert not np.isnan(one.passes.reference).any()
    assert mine.item() == pytest.approx(expected.item(), rel=1e-6)  # of which TRL computes parts in float32
    for name, p in model.named_parameters():
        difference = (p.grad - gradients[name]).abs().max() / gradients[name].abs().max()
        assert difference < 1e-5, name
