"""Write a page that shows what each token sees, to be opened in a browser.

    make explore                                                        the embedded default, its first conversation
    make explore ARGS="my.jsonl:1 my.jsonl:2 data=jsonl data.path=my.jsonl"   two conversations of a file, by line
    make explore ARGS="--out page.html attention.block_size=16"         another file, and smaller blocks of the mask

Takes the words of `recipes.inspector` and reads model, template and data as that does; no weights are loaded. One
HTML file that fetches nothing: the row as text, what a token sees and who sees it, the mask, the tree, and the same
conversation in the other layouts with what they cost. The last line printed is its path.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexmask import Calls, Conversation, LaidOut, Role, prepare_conversation
from flexmask.model.cost import head_cost, pair_cost
from flexmask.tree.layouts import LAYOUTS
from flexmask.tree.segments import ROLE_LABELS
from recipes.configuration.compose import compose
from recipes.configuration.overrides import checked_overrides, names_and_overrides
from recipes.configuration.schema import ModelKind, OnInvalid, TrainConfig
from recipes.models.load import branching_note, layers_of, load_tokenizer, weightless_model
from recipes.pages.explorer import Costs, Vocabulary, conversation_data
from recipes.pages.page import write_page
from recipes.preparation.rows import names_of_calls, settings_of
from recipes.sources.load import LoadedData, choose, load_data
from recipes.terminal.command import command, in_settings

SCRIPTS = ("explorer_row.js", "explorer_text.js", "explorer_mask.js", "explorer_tree.js", "explorer.js")
MARK = 'id="flexmask-explorer"'  # in the template: a file with it is a page of this command


@command
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m recipes.explore", description=__doc__.splitlines()[0])
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONVERSATION | key=value",
        help="indices from 0 of conversations among those trained, or their names (FILE:12); overrides of "
        "recipes.train",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (runs/explorer/<conversation>.html)")
    given = parser.parse_intermixed_args(arguments)
    wanted, overrides = names_and_overrides(given.words)
    explore(compose(checked_overrides(overrides)), wanted or ["0"], given.out)


def explore(config: TrainConfig, wanted: Sequence[str], path: Path | None = None) -> Path:
    """Write the page of the conversations that `wanted` names and print where it is.

    Raises ValueError as loading and preparing the data do, and for a path at which something else stands.
    """
    if path is not None:
        _check_place(path)
    tokenizer = load_tokenizer(config.model)
    data = load_data(config.data)
    chosen = [choose(data, one) for one in dict.fromkeys(wanted)]
    path = path or _place_for([one.name for one in chosen])
    _check_place(path)
    model, no_model = _model(config, len(tokenizer))
    costs = Costs(
        pair=None if model is None else pair_cost(model),
        head=None if model is None else head_cost(model),
        pack_length=config.duplication.pack_length,
        block_size=config.attention.block_size,
    )
    if no_model:
        print(f"! {no_model}")
    vocabulary = Vocabulary(tokenizer)
    shown, left_out = [], {}
    for one in chosen:
        laid_out, notes = _in_all_layouts(one, tokenizer, config)
        if isinstance(reason := laid_out["one_pass"], str):
            if config.data.on_invalid is not OnInvalid.drop:
                raise ValueError(reason)
            left_out[one.name] = reason
            continue
        calls = names_of_calls(one, tokenizer, config.data, config.duplication, config.context)
        about = {"name": one.name, "heldout": one in data.heldout, "notes": notes}
        shown.append(about | conversation_data(laid_out, vocabulary, costs, calls))
        print(_line(shown[-1]))
    for name, reason in left_out.items():
        print(f"left out, invalid: {name}: {in_settings(reason)}")
    if not shown:
        raise ValueError("there is nothing to show: every conversation that was named is invalid")
    path.parent.mkdir(parents=True, exist_ok=True)
    name = "tiny (the embedded default)" if config.model.kind is ModelKind.tiny else config.model.name_or_path
    write_page(
        path,
        "explorer.html",
        styles=["explorer.css"],
        scripts=SCRIPTS,
        data={
            "vocabulary": vocabulary.columns(),
            "conversations": shown,
            "layout": str(config.duplication.layout),
            "roles": [{"name": role.name, "label": ROLE_LABELS[role]} for role in Role],
        },
        values={
            "title": f"{shown[0]['name']}" + (f" and {len(shown) - 1} more" if len(shown) > 1 else ""),
            "model": name,
            "layers": no_model if model is None else _layers(model),
            "left_out": [f"{name}: {in_settings(reason)}" for name, reason in left_out.items()],
            "others": _others(data, len(shown)),
            "prediction": _prediction(costs),
        },
    )
    print(f"{_others(data, len(shown))}; {path.stat().st_size / 1e6:,.2f} MB, open it in a browser:")
    print(path)
    return path


def _model(config: TrainConfig, vocab_size: int) -> tuple[PreTrainedModel | None, str]:
    """The model without weights; None, and why, where it cannot be had. Only predictions need it."""
    try:
        return weightless_model(config.model, vocab_size), ""
    except ValueError as error:
        return None, f"Nothing is known of the model, so no speed-up is predicted: {in_settings(str(error))}"


def _layers(model: PreTrainedModel) -> str:
    """What its layers are, and which of them see less than the page shows."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    known = f"Layers of {type(model).__name__} by its config: {layers_of(model)}."
    reach = {"sliding_attention", "chunked_attention"} & kinds
    if not kinds and getattr(text, "sliding_window", None):
        reach = {"sliding_attention"}
    if reach:
        known += (
            f" What the page shows is the rule of full attention; layers of {' and '.join(sorted(reach))} see of that "
            "only what is near enough in positions."
        )
    if note := branching_note(model):
        known += f" Besides, {note}: such a state comes from all tokens that the page shows as seen."
    return known


def _prediction(costs: Costs) -> str:
    """By what formula the speed-up is predicted."""
    if costs.pair is None:
        return "No speed-up is predicted."
    return (
        "Predicted, not measured: the operations of packed per-turn training over those of a layout, in each "
        f"T + {costs.pair:.2g} P + {costs.head:.2g} L, of T tokens computed, P visible pairs, and L trained tokens for "
        "their logits (flexmask/model/cost.py). Windows of layers are not looked at. A kernel computes whole blocks: "
        f"the pairs in blocks of {costs.block_size}, with rows laid end to end in packs of at most "
        f"{costs.pack_length:,} tokens."
    )


def _in_all_layouts(
    one: Conversation | Calls, tokenizer: PreTrainedTokenizerBase, config: TrainConfig
) -> tuple[dict[str, LaidOut | str], list[str]]:
    """The rows of each layout, or why there are none; and the warnings of preparing the layout that is trained."""
    settings = settings_of(config.data, config.duplication, config.context)
    found: dict[str, LaidOut | str] = {}
    notes: list[str] = []
    for layout in LAYOUTS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found[layout] = prepare_conversation(one, tokenizer, **settings | {"layout": layout})
            except ValueError as error:
                found[layout] = str(error)
        if layout == config.duplication.layout:
            notes = [in_settings(str(w.message)) for w in caught if issubclass(w.category, UserWarning)]
    return found, list(dict.fromkeys(notes))


def _line(conversation: dict[str, Any]) -> str:
    one_pass = conversation["layouts"][0]
    rows, tokens, dropped = len(one_pass["rows"]), one_pass["tokens"], len(one_pass["dropped"])
    return (
        f"{conversation['name']}: {tokens:,} tokens in {rows} row{'s'[: rows != 1]}, {one_pass['trained']:,} trained"
        + (f"; {dropped} turns are longer than a pack and are left out" if dropped else "")
        + ("" if rows else "; nothing of it is trained, so there is no row to show")
        + "".join(f"\n  ! {note}" for note in conversation["notes"])
    )


def _others(data: LoadedData, shown: int) -> str:
    total = len(data.train) + len(data.heldout)
    return f"{shown:,} of the data's {total:,} conversations ({len(data.heldout):,} held out) on this page"


def _place_for(names: Sequence[str]) -> Path:
    plain = re.sub(r"[^\w.-]+", "_", names[0]).strip("._") or "conversation"
    more = f"_and_{len(names) - 1}_more" if len(names) > 1 else ""
    return Path("runs/explorer") / f"{plain[:100]}{more}.html"


def _check_place(path: Path) -> None:
    """Raise ValueError where something stands that is no page of this command."""
    if path.is_dir():
        raise ValueError(f"--out {path}: is a folder; name a file in it")
    if path.exists() and MARK.encode() not in path.read_bytes():
        raise ValueError(f"{path}: is there, and no page of the explorer; remove it, or name another file with --out")


if __name__ == "__main__":
    main(sys.argv[1:])
