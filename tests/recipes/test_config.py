"""The configuration: every file composes, and what is wrong fails early with its key named."""

import re
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import get_args, get_origin

import hydra
import pytest
import yaml
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st

from flexmask.text.rendering import select_turns
from recipes.configuration import CONF_DIR
from recipes.configuration import rules as config_rules
from recipes.configuration.compose import compose, load_run_config, save_run_config, to_dataclass
from recipes.configuration.overrides import checked_overrides
from recipes.configuration.rules import ConfigError, validate
from recipes.configuration.schema import Layout, SourceConfig, TrainConfig

CONF = Path(CONF_DIR)
DEFAULT = compose()
FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/*.yaml"))


def leaves(node, prefix=""):
    """{dotted key: value} of nested mappings."""
    flat = {}
    for key, value in node.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def needed(file: Path, tmp_path: Path) -> list[str]:
    """What a file leaves for the user to give."""
    local = tmp_path / "data.jsonl"
    local.touch()
    some_model = ["model=hub", "model.name_or_path=some/model"]
    return {
        "model/hub": some_model[1:],
        "experiment/tutoring_preferences": some_model[1:],
        "adapter/lora": some_model,
        "adapter/qlora": some_model,
        "data/jsonl": [f"data.path={local}"],
        "data/hub": ["data.hub_id=some/data"],
        "context/compact": ["context.arguments.instruction=Sum up.", "context.arguments.introduction=So far:"],
        "data/mix": [f"data.sources={{a:{{path:{local}}}}}"],
    }.get(file.as_posix(), [])


# Fails for a YAML file with a key or type that the schema lacks, that breaks a rule of `validate`, or whose
# values another file overrules.
@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes_and_its_values_arrive(file, tmp_path):
    extra = needed(file, tmp_path)
    composed = leaves(asdict(compose([f"{file.parent}={file.name}", *extra])))
    text = (CONF / file).with_suffix(".yaml").read_text()
    given_here = yaml.safe_load(text)
    given_here.pop("defaults", None)
    given_here.pop("hydra", None)
    given_here.pop("output_dir", None)  # of a sweep; `compose` has given one
    prefix = "" if "@package _global_" in text else f"{file.parent}."
    for key, value in leaves(given_here, prefix).items():
        if not any(override.startswith(key + "=") for override in extra):
            assert composed[key] == (float(value) if isinstance(composed[key], float) else value), key


def test_conf_has_the_groups_that_config_yaml_names():
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    named = {key for entry in defaults if isinstance(entry, dict) for key in entry if not key.startswith("over")}
    assert named == {path.parent.name for path in FILES}


def test_duplication_has_one_file_for_each_layout():
    assert {path.name for path in FILES if path.parent.name == "duplication"} == {layout.value for layout in Layout}


def test_layouts_experiments_and_overrides_combine():
    config = compose(["experiment=short", "duplication=per_turn", "trainer.steps=7", "trainer.warmup_steps=0"])
    assert (config.trainer.steps, config.duplication.layout) == (7, "per_turn")  # the command line wins
    assert config.evaluation.conversations == 16  # then the experiment


# Without `hydra.mode` in the file, `sweep=layouts` would train one layout and say nothing.
def test_a_sweep_is_a_file():
    with hydra.initialize_config_dir(CONF_DIR, version_base="1.3"):
        composed = hydra.compose("config", ["sweep=layouts"], return_hydra_config=True)
    assert composed.hydra.mode.name == "MULTIRUN"
    assert composed.hydra.sweeper.params == {"duplication": "one_pass,per_turn,keep_thinking", "seed": "0,1"}


# The length that a file gives must not stand against the one of the command line, nor win over it.
def test_the_length_on_the_command_line_takes_the_place_of_the_files():
    assert (compose(["trainer.epochs=2"]).trainer.steps, compose(["trainer.epochs=2"]).trainer.epochs) == (None, 2)
    assert compose(["trainer=finetune", "trainer.steps=7"]).trainer.epochs is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.stepz=1"], "trainer.stepz: no such setting; did you mean trainer.steps?"),
        (["steps=1"], "steps: no such setting; did you mean trainer.steps?"),
        (["kind=1"], "did you mean adapter.kind or data.kind or model.kind or objective.kind or parallel.kind?"),
        (["adaptor=lora"], "adaptor: no such setting; did you mean adapter?"),
        (["hydra.run.dir=a"], "name it with output_dir=<folder>"),
        (["nothing.like.it=1"], "nothing.like.it: no such setting; recipes/configuration/schema.py lists them"),
    ],
)
def test_a_misspelt_key_gets_the_right_one_as_advice(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        checked_overrides(words)


def test_other_words_reach_hydra():
    words = ["hydra.sweep.dir=a", "~experiment", "trainer=finetune", "seed=1,2", "--multirun", "not an override"]
    assert checked_overrides(words) == words


# As one types them: hydra 1.3 wants a plus for keys of the user's choice, and refuses the braces without one.
@pytest.mark.parametrize(
    "words",
    [
        ["data.template_kwargs={enable_thinking:false,effort:{level:2}}"],
        ["data.template_kwargs.enable_thinking=false", "+data.template_kwargs.effort.level=2"],
    ],
)
def test_settings_with_keys_of_the_users_choice(words):
    assert compose(words).data.template_kwargs == {"enable_thinking": False, "effort": {"level": 2}}


# As an error of the library advises it: a shell passes the backslash on.
def test_newlines_of_a_thinking_format_can_be_written():
    config = compose(["data.thinking_format='<think>\\n{thinking}\\n</think>'"])
    assert config.data.thinking_format == "<think>\n{thinking}\n</think>"


def test_sources_of_a_mix():
    sources = compose(
        [
            "data=mix",
            "data.sources={a:{hub_id:some/data,weight:0.5,template_kwargs:{x:1}}}",
            "data.sources.b.hub_id=c",
        ]
    ).data.sources
    assert sources == {
        "a": SourceConfig(hub_id="some/data", weight=0.5, template_kwargs={"x": 1}),
        "b": SourceConfig(hub_id="c"),
    }
    for values, message in (("{hub:x}", "'hub'"), ("{kind:recs}", "recs"), ("7", "data.sources.a")):
        with pytest.raises(ConfigError, match=f"data.sources.a.*{message}|{message}"):
            compose(["data=mix", f"data.sources={{a:{values}}}"])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("trainer.stepz=1", "trainer.stepz"),
        ("+trainer.stepz=1", "trainer.stepz"),  # Hydra's + goes past the schema
        ("+stepz=1", "stepz"),
        ("+model.tiny.depth=1", "model.tiny.depth"),
        ("trainer.lr=1", "trainer.lr: no such setting"),
        ("trainer.steps=many", "trainer.steps"),
        ("trainer.steps=1.5", "trainer.steps"),
        ("model.gradient_checkpointing=perhaps", "model.gradient_checkpointing"),
        ("duplication.layout=onepass", "duplication.layout"),
        ("wandb.mode=maybe", "wandb.mode"),
        ("duplication=onepass", "duplication=onepass: no such choice; did you mean one_pass?"),
        (
            "experiment=shrt",
            "experiment=shrt: no such choice; did you mean short?",
        ),  # an optional group would be ignored without a word
        ("sweep=nope", "sweep=nope: no such choice; There are context, layouts"),
        ("trainer=null_and_void", "trainer=null_and_void: no such choice"),
    ],
)
def test_a_wrong_override_is_named(override, named):
    with pytest.raises((HydraException, ConfigError)) as caught:
        compose([override])
    chain = f"{caught.value} {caught.value.__cause__}"
    assert named in chain


def test_a_wrong_key_in_a_yaml_file_is_named(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\ntrainer:\n  stepz: 1\n")
    with pytest.raises(HydraException) as caught:
        compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=typo"])
    assert "experiment/typo" in str(caught.value) and "stepz" in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.steps=0"], "trainer.steps=0: must be at least 1"),
        (["trainer.learning_rate=0"], "trainer.learning_rate=0.0: must be greater than 0"),
        (["trainer.learning_rate=nan"], "trainer.learning_rate=nan: must be greater than 0"),
        (["duplication.answer_weight=inf"], "duplication.answer_weight=inf: must be 0 or more"),
        (["trainer.adam_beta2=1"], "trainer.adam_beta2=1.0: must be from 0 to less than 1"),
        (["duplication.answer_weight=-1"], "duplication.answer_weight=-1.0: must be 0 or more"),
        (["duplication.answer_weight=0", "duplication.thinking_weight=0"], "nothing would be trained"),
        (["duplication.pack_length=0"], "duplication.pack_length=0: must be at least 1"),
        (["duplication.turns=first"], 'duplication.turns="first": write all'),
        (["trainer.steps=600", "trainer.warmup_steps=601"], "trainer.warmup_steps=601: is more than trainer.steps="),
        (["trainer.epochs=1", "trainer.steps=2"], "trainer.epochs=1.0 and trainer.steps=2: a run has one length"),
        (["trainer.steps=null"], "trainer.epochs and trainer.steps: have no value"),
        (["trainer.keep_best=true"], "trainer.keep_best=True.*give trainer.evaluate_every"),
        (["trainer.early_stopping=2"], "trainer.early_stopping=2: both go by .* give trainer.evaluate_every"),
        (
            ["trainer.keep_best=true", "trainer.evaluate_every=100"],
            "trainer.save_every=350: .* set it to trainer.evaluate_every=100",
        ),
        (["trainer=finetune", "trainer.epochs=0"], "trainer.epochs=0.0: must be greater than 0"),
        (["adapter.modules_to_save=[lm_head]"], "adapter.modules_to_save=.*: there is no adapter"),
        (["seed=4294967296"], "seed=4294967296: must be less"),
        (["adapter.r=8"], "adapter.r=8: there is no adapter; choose adapter=lora"),
        (["data.split=test"], "data.split=test: only data of the hub has splits"),
        (
            ["data=jsonl", f"data.path={__file__}", "data.split=test"],
            "test: only .*; name the file of that split in dat",
        ),
        (["data=mix", "data.path=a"], "data.path=a: a mix has it for each source"),
        (["adapter.kind=lora"], "adapter=lora: adapts weights that are trained already"),
        (["data=mix"], "data.sources: has no value"),
        (["data.sources={a:{path:x}}"], "data.sources: only for data=mix"),
        (["data=mix", "data.sources={a:{path:none.jsonl}}"], "data.sources.a.path=none.jsonl: no such file"),
        (["data=mix", "data.sources={a:{kind:tutoring}}"], "data.sources.a.train_conversations=null"),
        (["data=mix", "data.sources={a:{kind:mix}}"], "data.sources.a.kind=mix: a mix cannot be"),
        (["data=mix", "data.sources={a:{hub_id:x,weight:0}}"], "data.sources.a.weight=0.0: must be greater"),
        (["model.name_or_path=x"], "model.name_or_path=x: the tiny model is built"),
        (["model=hub"], "model.name_or_path: has no value"),
        (["model.from_scratch=false"], "model.from_scratch=false"),
        (["model.tiny=null"], "model.tiny: has no value"),
        (["model.tiny.kv_heads=3"], "model.tiny.kv_heads=3: must divide model.tiny.heads=4"),
        (["evaluation.context={roule: compact}"], "evaluation.context: Key 'roule' not in 'ContextConfig'"),
        (["evaluation.context={rule: keep}"], "evaluation.context.rule=keep: no such rule; choose"),
        (["evaluation.context.rule=compact"], "is given as a whole, 'evaluation.context={rule: ...}'"),
        (["model.chat_template=none.jinja"], "model.chat_template=none.jinja: no such file"),
        (["data=jsonl"], "data.path: has no value"),
        (["data=gsm8k_socratic", "data.path=none.jsonl"], "data.path=none.jsonl: no such file"),
        (["data.train_conversations=null"], "data.train_conversations=null"),
        (["data.thinking_format=think"], "data.thinking_format='think'"),
        (["resume=runs/none"], "resume=runs/none: no such run folder"),
    ],
)
def test_a_rule_that_types_cannot_say(overrides, message):
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert re.search(message, str(caught.value))


# A variable of the shell that nobody has set: the run would lie among the files of the folder that one is in.
def test_an_empty_run_folder_is_refused():
    with pytest.raises(ConfigError, match="output_dir: is empty"):
        validate(replace(DEFAULT, output_dir=""))


def test_a_model_is_measured_under_the_rule_that_it_was_trained_under_unless_told_otherwise():
    assert compose(["context=parcels"]).deployed_context.rule == "recipes.sources.parcels:harness"
    uncut = compose(["experiment=parcels_uncut"])
    assert (uncut.context.rule, uncut.deployed_context.rule) == (None, "recipes.sources.parcels:harness")
    given = compose(["evaluation.context={rule: keep_last_tool_results, arguments: {keep: 2}}"])
    assert given.context.rule is None and given.deployed_context.arguments == {"keep": 2}


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        compose(["trainer.log_every=0", "model.tiny.heads=3", "duplication.pack_length=0"])
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [
        "duplication.pack_length",
        "trainer.log_every",
        "model.tiny.kv_heads",
    ]


def test_a_value_that_is_missing_is_named():
    with hydra.initialize_config_dir(CONF_DIR, version_base="1.3"):
        composed = hydra.compose("config", ["trainer.learning_rate=???"])
    with pytest.raises(ConfigError, match="trainer.learning_rate: has no value"):
        to_dataclass(composed)


# A new number in the schema without a rule for its range fails here.
def test_every_number_has_a_rule():
    def numbers(schema, prefix=""):
        for field in fields(schema):
            kinds = {field.type, *(() if get_origin(field.type) is list else get_args(field.type))}
            nested = [kind for kind in kinds if is_dataclass(kind)]
            if nested:
                yield from numbers(nested[0], f"{prefix}{field.name}.")
            # Those have a rule in `_source` and in `check_flaws`.
            elif kinds & {int, float} and prefix + field.name not in ("data.train_conversations", "data.flaws"):
                yield prefix + field.name

    tables = ("_AT_LEAST_ONE", "_AT_LEAST_ZERO", "_ABOVE_ZERO", "_BELOW_ONE")
    ruled = [key for table in tables for key in getattr(config_rules, table)]
    assert sorted(ruled) == sorted(numbers(TrainConfig))


# The check of `turns` is early and without torch; the library's own parser decides what it must accept.
@given(st.text(alphabet="012-:, ", max_size=6))
def test_turns_are_accepted_exactly_where_the_library_accepts_them(turns):
    def accepted(call):
        try:
            call()
        except ValueError:
            return False
        return True

    config = replace(DEFAULT, duplication=replace(DEFAULT.duplication, turns=turns))
    assert accepted(lambda: validate(config)) == accepted(lambda: select_turns(turns, 5))


def test_a_saved_configuration_comes_back(tmp_path):
    config = compose(["duplication=per_turn", "+data.template_kwargs.enable_thinking=false"], tmp_path / "run")
    save_run_config(config, tmp_path / "run")
    assert load_run_config(tmp_path / "run") == config
    changed = load_run_config(tmp_path / "run", ["evaluation.conversations=5", "wandb.mode=off"])
    assert (changed.evaluation.conversations, changed.wandb.mode) == (5, "off")  # YAML reads off as false
    save_run_config(changed, tmp_path / "run")
    assert load_run_config(tmp_path / "run") == changed
    (tmp_path / "run").rename(tmp_path / "moved")
    assert load_run_config(tmp_path / "moved").output_dir == str(tmp_path / "moved")


# Resuming saves the configuration again; evaluating that run must not want the folder it came from.
def test_a_saved_configuration_does_not_resume(tmp_path):
    save_run_config(replace(DEFAULT, resume="runs/gone"), tmp_path)
    assert load_run_config(tmp_path).resume is None
    assert load_run_config(tmp_path, [f"resume='{tmp_path}'"]).resume == str(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.conversation=5"], "evaluation.conversation"),
        (["evaluation.conversations=few"], "evaluation.conversations"),
        (["evaluation.batch_size=0"], "evaluation.batch_size=0: must be at least 1"),
        (["duplication"], "duplication"),
        (["seed=0,1"], "seed=0,1: only key=value"),
        (["+seed=1"], "seed=1: only key=value"),
    ],
)
def test_a_wrong_override_of_a_saved_configuration_is_named(overrides, message, tmp_path):
    save_run_config(compose([], tmp_path), tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_run_config(tmp_path, overrides)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}: no run folder")):
        load_run_config(tmp_path)


# A wrong setting must not cost the seconds that these imports take.
def test_composing_loads_nothing_heavy():
    code = (
        "import sys; from recipes.configuration.compose import compose; compose(); "
        "print(sorted({'torch', 'transformers', 'datasets', 'wandb', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
