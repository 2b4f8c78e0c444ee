"""The experiments whose results are looked at: each by its own command, on a small model of its architecture."""

import json

import pytest
import torch
from journeys.test_conf import SMALL
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

EXPERTS = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
# The command, and the folder in place of the hub's. That of gpt-oss has its experts in 4 bits, as on the hub.
COMMANDS = {
    'make train ARGS="experiment=qwen3_30b_a3b_lora_mathchatsync"': "models/experts",
    'make train ARGS="experiment=gpt_oss_20b_lora_mathchatsync"': "models/gpt_oss",
}


@pytest.fixture(scope="module", params=COMMANDS, ids=["qwen3", "gpt-oss"])
def adapted(workshop, request):
    words = [f"model.name_or_path={COMMANDS[request.param]}", "data.path=my.jsonl", *SMALL, "wandb=off"]
    done = workshop.run(f'{request.param[:-1]} {" ".join(words)}"')
    return workshop.folder / done.last_line, done


# Breaks if experts get no adapter (peft's `target_modules` do not reach them), or one that nothing flows into.
def test_attention_and_experts_are_trained(adapted):
    weights = load_file(adapted[0] / "model/adapter_model.safetensors")
    model = AutoPeftModelForCausalLM.from_pretrained(adapted[0] / "model")
    parts = {
        f"{path.replace('.base_layer', '')}.{getattr(module, 'parameter_name', 'weight')}".split("layers.")[1]
        for path, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    attention = {f"self_attn.{one}_proj.weight" for one in "qkvo"}
    assert parts == {f"{layer}.{part}" for layer in (0, 1) for part in attention | EXPERTS}
    second = [weight for name, weight in weights.items() if "lora_B" in name]  # zeros before training
    assert len(second) == len(parts) and all(weight.any() for weight in second)
    assert "trained (" in adapted[1].out and "bfloat16" in adapted[1].out


# Breaks if merging or loading again reads experts otherwise than training did.
@torch.no_grad()
def test_the_merged_model_gives_the_logits_of_the_adapter(workshop, adapted, monkeypatch):
    monkeypatch.chdir(workshop.folder)
    workshop.run(f'make merge ARGS="{adapted[0]}"')
    ids = torch.arange(3, 40)[None]
    merged = AutoModelForCausalLM.from_pretrained(adapted[0] / "merged")
    assert getattr(merged.config, "quantization_config", None) is None
    with_adapter = AutoPeftModelForCausalLM.from_pretrained(adapted[0] / "model")
    expected = with_adapter(ids).logits
    moved = (merged(ids).logits - expected).abs().mean() / expected.abs().mean()
    assert moved < 0.02  # sums of weights are rounded to bfloat16, which has 8 bits
    with with_adapter.disable_adapter():
        assert (with_adapter(ids).logits - expected).abs().mean() / expected.abs().mean() > 2 * moved


# Seven turns of four dialogs, of which one failed, and one turn behind a tool that the user called. Breaks if a line is
# trained otherwise than as the turn that it is, if turns of a dialog stand on both sides of the split, if the dialog
# that failed is trained, or if a line is lost without a word.
def test_episodes_of_tau2_are_trained_turn_by_turn(workshop):
    words = f"model.name_or_path=models/dense data.path=tau2.jsonl {' '.join(SMALL)} data.heldout_conversations=1"
    command = 'make train ARGS="experiment=qwen3_4b_tau2"'
    done = workshop.run(f'{command[:-1]} {words} wandb=off"')
    folder = workshop.folder / done.last_line
    assert "read as messages and answer\n" in done.out and "2 conversations, " in done.out
    assert "1 invalid conversations, 1 conversations with nothing to train\n" in done.out
    assert "data.filter: answers are not trained: its correct says that it failed (1 of 7 conv" in done.err
    assert "calls of one 'metadata.source_dialog_id' are one record (data.episode_key) (7 of 7 conv" in done.err
    result = json.loads((folder / "result.json").read_text())
    assert result["formats"] == {"messages and answer": 7} and result["steps"] == 3
    (left_out,) = (json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines())
    assert "tau2.jsonl:8" in str(left_out) and "message 4: unknown key 'tool_calls'" in str(left_out)
    lines = [json.loads(line) for line in (workshop.folder / "tau2.jsonl").read_text().splitlines()]
    chats = [json.loads(line) for line in (folder / "chats.jsonl").read_text().splitlines()]
    held = {lines[int(chat["conversation"].partition(":")[2]) - 1]["metadata"]["source_dialog_id"] for chat in chats}
    assert len(held) == 1
    assert len(chats) == sum(one["metadata"]["source_dialog_id"] in held for one in lines[:7])
