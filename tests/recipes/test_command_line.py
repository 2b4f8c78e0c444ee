"""From a configuration back to the words that compose it."""

import datetime
import shlex

import pytest
from omegaconf import OmegaConf

from recipes.configuration.command_line import choices_of
from recipes.configuration.compose import compose
from recipes.terminal.command import typed

RECORD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
WORDS = {
    "the default": [],
    "single settings": ["seed=3", "trainer.steps=7", "trainer.schedule_args={}", "trainer.report_to=[tensorboard]"],
    "a model and a file": ["model=hub", "model.name_or_path=a/b", "trainer=finetune", "data=jsonl", "{path}"],
    "an adapter": ["model=hub", "model.name_or_path=a/b", "adapter=lora", "adapter.target_modules=[q,v]"],
    "a large model": ["experiment=qwen3_30b_a3b_lora_mathchatsync"],
    "under fsdp": ["experiment=qwen3_4b_mathchatsync"],
    "pairs": ["experiment=tutoring_preferences", "model.name_or_path=a/b"],
    "episodes": ["experiment=parcels"],
    "episodes uncut": ["experiment=parcels_uncut"],
    "a control": ["duplication=keep_thinking", "wandb=off"],
    "a rule": ["context=keep_last_tool_results", "context.arguments.keep=5"],
    "words for people": ["context=compact", "context.arguments={instruction:'a: \"b\"',introduction:'it\\'s $A'}"],
    "a measured rule": ["evaluation.context={rule:keep_last_tool_results,arguments:{keep:2}}"],
    "turns": ["duplication.turns='0,2'", "duplication.thinking_weight=0.5"],
    "one turn": ["duplication.turns='-1'"],
    "newlines": ["data.thinking_format='<t>\\n{thinking}\\n</t>\\n'", "data.thinking_tags=['<t>','</t>']"],
    "nothing": ["data.thinking_tags=null", "data.thinking_format=null", "data.episode_key=null"],
    "template": ["data.template_kwargs={enable_thinking:false,name:'a b',n:3}"],
    "a mix": ["data=mix", "data.sources={mine:{path:'PATH',weight:0.5},more:{kind:tutoring,train_conversations:3}}"],
    "a sweep's group": ["wandb.group='2026-01-01_10-00-00'", "wandb.tags=['a b',c]"],
    "an optimizer": ["trainer.optimizer=adafactor", "trainer.optimizer_args={scale_parameter:false}"],
}  # fmt: skip


def saved(config):
    return OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config))))


# Breaks if a value is written so that Hydra reads another one, if a file of conf/ is chosen that says more than is
# wanted, or if a setting is left out.
@pytest.mark.parametrize("kind", WORDS)
def test_the_words_compose_the_same_configuration(kind, tmp_path):
    path = tmp_path / "it's my file.jsonl"
    path.write_text(RECORD * 30)
    given = [f'data.path="{path}"' if one == "{path}" else one.replace("'PATH'", f'"{path}"') for one in WORDS[kind]]
    config = compose([*given, "data.date=2020-02-02"])
    found = choices_of(saved(config))
    assert compose(found.words) == config
    # As a shell gives them to the command, behind make.
    line = typed("train", *found.words)
    (arguments,) = (word for word in shlex.split(line) if word.startswith("ARGS="))
    assert shlex.split(arguments.removeprefix("ARGS=").replace("$$", "$")) == found.words


def test_files_of_conf_are_named_rather_than_what_stands_in_them():
    words = [
        "model=hub",
        "model.name_or_path=a/b",
        "adapter=lora",
        "trainer=lora",
        "data=hub",
        "data.hub_id=c/d",
        "wandb=off",
    ]
    found = choices_of(saved(compose(words)))
    assert found.groups == {"model": "hub", "adapter": "lora", "data": "hub", "trainer": "lora", "wandb": "off"}
    assert set(found.changed) == {"model.name_or_path", "data.hub_id", "data.date"}


# Breaks if the nearest file of conf/ is taken though it has an argument that no word takes away again.
def test_a_file_that_says_more_than_is_wanted_is_not_taken():
    config = saved(compose())
    config["context"] = {"rule": "keep_last_tool_results", "arguments": {"placeholder": "x"}}
    found = choices_of(config)
    assert "context" not in found.groups and "context.arguments={placeholder:x}" in found.words


# Breaks if the day on which a report is made stands in it.
def test_the_day_is_always_said(monkeypatch):
    today = saved(compose())
    assert today["data"]["date"] == datetime.date.today().isoformat()
    assert choices_of(today).words == [f"data.date={today['data']['date']}"]


def test_what_no_command_line_can_say(tmp_path):
    config = saved(compose())
    config["context"]["arguments"] = {"a key: with signs": 1}
    assert choices_of(config) is None


def test_several_processes_are_launched_together():
    assert typed("train", "seed=1", processes=4) == 'NPROC=4 make train ARGS="seed=1"'
