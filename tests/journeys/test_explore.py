"""The explorer as a user runs it: on their own files, in other layouts, and with what cannot be shown."""

import json


def test_conversations_and_calls_of_own_files(workshop):
    calls = [
        {"prompt": [{"role": "user", "content": "add"}], "completion": {"role": "assistant", "content": "two"}},
        {"prompt": [{"role": "user", "content": "so far"}], "completion": {"role": "assistant", "content": "six"}},
    ]
    (workshop.folder / "calls.jsonl").write_text(json.dumps({"calls": calls}) + "\n")
    done = workshop.run("python -m recipes.explore calls.jsonl:1 data=jsonl data.path=calls.jsonl")
    assert done.last_line == "runs/explorer/calls.jsonl_1.html"
    assert "calls.jsonl:1" in (workshop.folder / done.last_line).read_text()
    words = "data=jsonl data.path=long.jsonl duplication=per_turn duplication.pack_length=400"
    done = workshop.run(
        f"python -m recipes.explore 0 1 --out pages/two.html {words} model=hub model.name_or_path=models/dense"
    )
    assert done.last_line == "pages/two.html" and "2 of the data's 7 conversations" in done.out
    before = (workshop.folder / done.last_line).read_bytes()
    workshop.run(
        f"python -m recipes.explore 0 1 --out pages/two.html {words} model=hub model.name_or_path=models/dense"
    )
    assert (workshop.folder / done.last_line).read_bytes() == before  # the same again


def test_what_cannot_be_shown_is_said(workshop):
    done = workshop.run("python -m recipes.explore my.jsonl:99 data=jsonl data.path=my.jsonl", code=1)
    assert "conversation 'my.jsonl:99': there is none of this name or index" in done.err
    done = workshop.run("python -m recipes.explore data=jsonl data.path=my.jsonl --out my.jsonl", code=1)
    assert "my.jsonl: is there, and no page of the explorer" in done.err
    done = workshop.run("python -m recipes.explore data=jsonl data.path=my.jsonl duplication.pack_length=10", code=1)
    assert "pack_length is 10; raise it" in done.err
    done = workshop.run("python -m recipes.explore --help")
    assert "--out FILE" in done.out
