"""Evaluate a finished run again: chat on its held-out conversations.

    python -m recipes.evaluate RUN_FOLDER [key=value ...]
    make evaluate ARGS="runs/<folder> evaluation.conversations=50"

The overrides change the run's own configuration. Prints one JSON object; writes nothing.
"""

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from flexmask import Conversation
from recipes.chat import ChatResult, answer_accuracy, chat, conversation_accuracy
from recipes.config import TrainConfig, load_run_config
from recipes.preparation import load_data


def evaluate_chats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heldout: Sequence[Conversation],
    config: TrainConfig,
) -> tuple[dict[str, float | None], list[ChatResult]]:
    """Chat on the first `evaluation.conversations` of `heldout`: shares answered exactly right, and the chats.

    The figures are None when nothing is to be evaluated.
    """
    chosen = heldout[: config.evaluation.conversations]
    if not chosen:
        return {"answer_accuracy": None, "conversation_accuracy": None}, []
    results = chat(
        model,
        tokenizer,
        chosen,
        max_new_tokens=config.evaluation.max_new_tokens,
        batch_size=config.evaluation.batch_size,
        template_kwargs=config.data.template_kwargs,
        date=datetime.date.fromisoformat(config.data.date),
    )
    figures = {"answer_accuracy": answer_accuracy(results), "conversation_accuracy": conversation_accuracy(results)}
    return figures, results


def main(run: Path, overrides: Sequence[str]) -> None:
    disable_progress_bar()
    config = load_run_config(run, overrides)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=getattr(torch, config.model.dtype))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    figures, _ = evaluate_chats(model, tokenizer, load_data(config.data).heldout, config)
    print(json.dumps(figures))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m recipes.evaluate RUN_FOLDER [key=value ...]")
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except ValueError as error:
        sys.exit(f"error: {error}")
