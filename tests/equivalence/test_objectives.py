"""Objectives of passes that compete: one pass over the tree equals the objective computed pass by pass with stock
attention, each formula written out again here."""

import numpy as np
import pytest
import torch
from factories import TINY_MODELS, random_candidates
from reference import gradients, pass_token_losses, worst_gradient_difference

from flexmask import lay_out, pack, prepare_model, token_losses
from flexmask.model import loss as loss_module
from flexmask.objectives.policy import group_advantages, policy_loss, term_log_probs
from flexmask.objectives.preference import KINDS, Preference
from flexmask.tree.passes import terms_of

BLOCK, VOCAB = 16, 40
TOLERANCES = (1e-10, 1e-10)  # of the loss, of gradients; what docs/preferences.md says, in float64


def pair(seed):
    return random_candidates(seed, 2, (1.0, 0.0) if seed % 2 else (-2.0, 3.5))


def by_hand(model, p):
    """(log-probabilities of what a pass generates, their weights), each [tokens]."""
    log_probs = -pass_token_losses(model, p)[p.prompt_length - 1 :]
    return log_probs, torch.from_numpy(p.loss_weights[p.prompt_length :]).double()


def preference_by_hand(model, reference, records, kind, beta):
    """Formulas of the papers, with nothing of the library."""
    total = 0.0
    for passes in records:
        gained, tokens = {}, {}
        for p in passes:
            log_probs, weights = by_hand(model, p)
            with torch.no_grad():
                before, _ = by_hand(reference, p)
            gained[p.reward] = gained.get(p.reward, 0) + ((log_probs - before) * weights).sum()
            tokens[p.reward] = tokens.get(p.reward, 0) + weights.sum()
        better, worse = max(gained), min(gained)
        if kind == "sigmoid":
            total = total - torch.log(torch.sigmoid(beta * (gained[better] - gained[worse])))
        elif kind == "sigmoid_norm":
            h = gained[better] / tokens[better] - gained[worse] / tokens[worse]
            total = total - torch.log(torch.sigmoid(beta * h))
        else:
            h = gained[better] / tokens[better] - gained[worse] / tokens[worse]
            total = total + (h - 0.5 / beta) ** 2
    return total


def with_reference(packs, reference, model):
    """The packs, with the log-probabilities of passes by `reference` in their tables, and those by `model` of passes
    that stand in other packs: each computed alone, with stock attention."""
    for one, passes in packs:
        for i, p in enumerate(passes):
            log_probs, weights = by_hand(reference, p)
            one.passes.reference[i] = (log_probs * weights).sum().item()
            if not one.passes.is_here[i]:
                log_probs, weights = by_hand(model, p)
                one.passes.log_prob[i] = (log_probs * weights).sum().item()
    return [one for one, _ in packs]


def packs_of(records, pack_length):
    """(pack, the pass of each entry of its table)."""
    rows = [row for passes in records for row in lay_out(passes, "one_pass", pack_length).rows]
    names = {passes[0].name: passes for passes in records}
    found = []
    for one in pack(rows, pack_length):
        entries = zip(one.passes.group, one.passes.turn, strict=True)
        found.append((one, [names[one.rows[group]][turn] for group, turn in entries]))
    return found


def models(family, seed):
    return TINY_MODELS[family](VOCAB, torch.float64, seed), TINY_MODELS[family](VOCAB, torch.float64, seed + 100)


def assert_same(model, mine, reference_loss):
    my_gradients = gradients(model, mine)
    reference = reference_loss()
    reference_gradients = gradients(model, reference)
    assert abs(mine.item() - reference.item()) <= TOLERANCES[0] * abs(reference.item())
    assert worst_gradient_difference(reference_gradients, my_gradients) <= TOLERANCES[1]


# Breaks if a token that both answers share is counted once, or with the weight of the other one; if a turn of a rollout
# is left out; if better and worse are exchanged; and if a record is compared with its neighbour in the pack.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TINY_MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_preferences_of_a_pack(kind, family, seed):
    model, reference = models(family, seed)
    records = [pair(10 * seed + i) for i in range(3)]
    assert any(len(row) < sum(len(p) for p in records[0]) for row in lay_out(records[0], "one_pass").rows)
    packs = with_reference(packs_of(records, 2048), reference, model)
    assert len(packs) == 1
    prepare_model(model)
    result = token_losses(model, packs[0], BLOCK, Preference(kind, 0.3))
    assert result.figures["pairs"] == 3
    assert_same(model, result.total, lambda: preference_by_hand(model, reference, records, kind, 0.3))


# Breaks if a pair that is divided over packs counts in each of them, or has its gradient in the first alone.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_preferences_that_are_divided_over_packs(kind, seed):
    model, reference = models("qwen3", seed)
    records = [pair(50 + seed)]
    packs = with_reference(packs_of(records, max(map(len, records[0]))), reference, model)
    assert len(packs) > 1
    prepare_model(model)
    results = [token_losses(model, one, BLOCK, Preference(kind, 0.3)) for one in packs]
    assert sum(int(result.figures["pairs"]) for result in results) == 1
    total = sum(result.total for result in results)
    assert_same(model, total, lambda: preference_by_hand(model, reference, records, kind, 0.3))


def policy_by_hand(model, old, reference, records, advantages, low, high, kl, average):
    total = 0.0
    for passes, of_passes in zip(records, advantages, strict=True):
        terms = {}
        for p, advantage in zip(passes, of_passes, strict=True):
            log_probs, weights = by_hand(model, p)
            with torch.no_grad():
                before, by_reference = by_hand(old, p)[0], by_hand(reference, p)[0]
            ratio = torch.exp(log_probs - before)
            one = -torch.minimum(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)
            k = by_reference - log_probs
            one = one + kl * (torch.exp(k) - k - 1)
            terms.setdefault(p.candidate, []).append((one, weights))
        for of_candidate in terms.values():
            one, weights = (torch.cat(parts) for parts in zip(*of_candidate, strict=True))
            total = total + (one * weights).sum() / (weights.sum() if average == "rollouts" else 1)
    return total


# Breaks if a shared token has one term for all rollouts, if clipping looks at the wrong side for a negative advantage,
# and if old log-probabilities are aligned with tokens of the row instead of terms.
@pytest.mark.parametrize("average", ["tokens", "rollouts"])
@pytest.mark.parametrize("family", TINY_MODELS)
@pytest.mark.parametrize("seed", range(2))
def test_policy_gradients_of_groups(average, family, seed):
    model, reference = models(family, seed)
    old = TINY_MODELS[family](VOCAB, torch.float64, seed)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    records = [random_candidates(70 + 10 * seed + i, 4, (0.0, 1.0, 1.0, 0.25)) for i in range(2)]
    ((one, passes),) = packs_of(records, 4096)
    advantages = group_advantages(one.passes)
    expected = []
    for record in records:
        rewards = {p.candidate: p.reward for p in record}
        values = torch.tensor(list(rewards.values()), dtype=torch.float64)
        scaled = (values - values.mean()) / (values.std() + 1e-4)
        expected.append([scaled[p.candidate].item() for p in record])
    flat = [value for record in expected for value in record]
    order = [id(p) for record in records for p in record]
    assert torch.allclose(advantages, torch.tensor([flat[order.index(id(p))] for p in passes]).double(), atol=1e-12)
    for other in (old, reference):
        prepare_model(other)
    olds, references = (term_log_probs(other, one, BLOCK) for other in (old, reference))
    prepare_model(model)
    result = policy_loss(
        model,
        one,
        advantages,
        old_log_probs=olds,
        reference_log_probs=references,
        clip_low=0.1,
        clip_high=0.3,
        kl=0.05,
        average=average,
        block_size=BLOCK,
    )
    assert 0 < result.figures["clipped"] < len(olds), "nothing or all was clipped: the test shows nothing"
    others = (old, reference, records, expected, 0.1, 0.3, 0.05, average)
    assert_same(model, result.total, lambda: policy_by_hand(model, *others))


# Breaks if a group that is divided over packs is counted in each of them, so that a step divides by too many rollouts,
# or if the mean over the tokens of a rollout knows those of one pack alone.
@pytest.mark.parametrize("average", ["tokens", "rollouts"])
@pytest.mark.parametrize("seed", range(3))
def test_policy_gradients_of_a_group_that_is_divided_over_packs(average, seed):
    model, _ = models("qwen3", seed)
    record = random_candidates(60 + seed, 4, (0.0, 1.0, 1.0, 0.25))
    packs = [one for one, _ in packs_of([record], max(map(len, record)))]
    assert len(packs) > 1
    prepare_model(model)
    results = [
        policy_loss(model, one, group_advantages(one.passes), average=average, block_size=BLOCK) for one in packs
    ]
    count = sum(result.figures["count"].item() for result in results)
    weight = sum(p.loss_weights.sum(dtype="float64") for p in record)
    assert count == pytest.approx(4 if average == "rollouts" else weight)
    rewards = {p.candidate: p.reward for p in record}
    values = torch.tensor(list(rewards.values()), dtype=torch.float64)
    scaled = dict(zip(rewards, ((values - values.mean()) / (values.std() + 1e-4)).tolist(), strict=True))
    of_passes = [[scaled[p.candidate] for p in record]]
    by_hand_ = lambda: policy_by_hand(model, model, model, [record], of_passes, 0.2, 0.2, 0.0, average)  # noqa: E731
    total = sum(result.total for result in results)
    my_gradients, expected = gradients(model, total), by_hand_()
    # Advantages add up to 0, and so does the loss where every rollout counts alike: nothing to compare with.
    assert total.item() == pytest.approx(expected.item(), rel=TOLERANCES[0], abs=1e-12)
    assert worst_gradient_difference(gradients(model, expected), my_gradients) <= TOLERANCES[1]


# Breaks if samples of the model itself are taken for those of another: then the gradient is not that of REINFORCE.
def test_fresh_samples_need_no_old_log_probabilities():
    model, _ = models("qwen3", 0)
    records = [random_candidates(90, 3, (0.0, 1.0, 0.5))]
    ((one, passes),) = packs_of(records, 4096)
    advantages = group_advantages(one.passes, scale=False)
    prepare_model(model)
    mine = gradients(model, policy_loss(model, one, advantages, block_size=BLOCK).total)

    total = 0.0
    for p, advantage in zip(passes, advantages.tolist(), strict=True):
        log_probs, weights = by_hand(model, p)
        total = total - advantage * (log_probs * weights).sum()
    assert worst_gradient_difference(gradients(model, total), mine) <= TOLERANCES[1]


# Breaks if the terms of a pass are not exactly what it trains, by walking its path.
@pytest.mark.parametrize("seed", range(20))
def test_terms_are_what_each_pass_trains(seed):
    passes = random_candidates(seed, 3, (0.0, 1.0, 2.0))
    (row,) = lay_out(passes, "one_pass").rows
    terms = terms_of(row.passes, row.visible_until, row.position_ids)
    for number, turn in enumerate(row.passes.turn):
        p, mine = passes[turn], terms.of == number
        at = np.flatnonzero(p.loss_weights > 0)
        assert np.array_equal(row.input_ids[terms.token[mine]], p.input_ids[at])
        assert np.array_equal(row.position_ids[terms.token[mine]], at)
        assert np.array_equal(terms.weight[mine], p.loss_weights[at])
    # And nothing else: what terms weigh adds up to the loss weights.
    assert np.allclose(np.bincount(terms.token, terms.weight, minlength=len(row)), row.loss_weights)


# Breaks if logits of all trained tokens are made at once, in either of the two times that chunks are computed.
def test_memory_is_that_of_a_chunk_at_a_real_vocabulary(monkeypatch):
    from random_trees import LargestTensor

    model = TINY_MODELS["qwen3"](151_936, torch.float32, 0)
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)  # a gradient as large as the head itself would hide the logits
    ((one, _),) = packs_of([pair(seed) for seed in range(3)], 2048)
    one.passes.reference[:] = -100.0
    trained = int((one.loss_weights > 0).sum())
    monkeypatch.setattr(loss_module, "LOGITS_BYTES", 5 * 4 * 151_936)
    assert trained > 2 * model.config.hidden_size, "all logits would be no larger than the head: the test shows nothing"
    prepare_model(model)
    with LargestTensor() as largest:
        token_losses(model, one, BLOCK, Preference()).total.backward()
    assert largest.elements <= model.lm_head.weight.numel()
    assert model.model.norm.weight.grad.abs().sum() > 0
