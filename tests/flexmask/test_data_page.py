"""The records that docs/data.md shows are read as it says, and give passes."""

import copy
import json
import re
from pathlib import Path

import pytest
from factories import chatml_tokenizer
from records import CALLING_TEMPLATE

from flexmask import prepare_conversation, read_conversation, read_record
from flexmask.conversations.model_calls import FORMAT

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|`]+) \| `(\{.*\})` \|$", PAGE, re.MULTILINE)


def tokenizer():
    calling = copy.deepcopy(chatml_tokenizer())
    calling.chat_template = "{% if enable_thinking %}{% endif %}" + CALLING_TEMPLATE  # for a record with a switch
    calling.add_tokens(["<tool_call>", "</tool_call>"])
    return calling


def test_every_format_has_a_row():
    """Breaks if a reader is added that nobody is told of."""
    formats = Path(__file__).parents[2] / "flexmask" / "conversations" / "formats"
    names = set(re.findall(r'^NAME = "(.+)"$', "".join(one.read_text() for one in formats.glob("*.py")), re.MULTILINE))
    shown = {name for kind, _ in ROWS for name in kind.split(" with ")}
    assert names - shown == {"harmony channels"} and "channels of gpt-oss" in PAGE and shown <= {*names, FORMAT}


@pytest.mark.parametrize(("name", "record"), ROWS)
def test_the_records_of_the_page_are_read_and_trained(name, record):
    conversation = read_record(json.loads(record), "docs/data.md")
    assert conversation.format == name and conversation.unread == ()
    laid_out = prepare_conversation(conversation, tokenizer())
    assert laid_out.rows and laid_out.rows[0].loss_weights.any()


def test_a_hermes_call_is_generated_with_the_tokenizers_own_token():
    """Breaks if the call is trained as plain text, or with characters between that no parser knows."""
    made = tokenizer()
    record = next(record for name, record in ROWS if "Hermes" in name)
    row = prepare_conversation(read_conversation(json.loads(record), "x"), made).rows[0]
    trained = row.input_ids[row.loss_weights > 0]
    for tag in ("<tool_call>", "</tool_call>"):
        assert (trained == made.convert_tokens_to_ids(tag)).sum() == 1
    assert '<tool_call>\n{"name": "weather", "arguments": {"town": "Lund"}}\n</tool_call>' in made.decode(trained)
