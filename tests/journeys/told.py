"""What the documentation tells a user to type, read from the documentation itself."""

import re
import textwrap

from journeys.workshop import ROOT

# How a command begins, with the variables that may stand before it.
BEGINS = re.compile(r"(?:[A-Z_]+=\S+\s+)*(?:make|flexmask|python|pip|uv|accelerate|torchrun|wandb|tensorboard)\s+\S")
PLACEHOLDER = re.compile(r"make target\b")


def told() -> dict[str, str]:
    """Each command, and the file that tells it first: README, CONTRIBUTING, docs/, targets of `make help`, conf/."""
    commands: dict[str, str] = {}
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for command in of_markdown(path.read_text(encoding="utf-8")):
            commands.setdefault(command, path.name)
    for command in of_makefile((ROOT / "Makefile").read_text(encoding="utf-8")):
        commands.setdefault(command, "Makefile")
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        for command in of_comments(path.read_text(encoding="utf-8")):
            commands.setdefault(command, str(path.relative_to(ROOT)))
    return commands


def of_markdown(text: str) -> list[str]:
    """Commands in blocks of code, a line each, and in `code` within a paragraph, which may be broken over lines."""
    commands = []
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
    for language, block in blocks:
        if language in ("", "bash", "sh", "shell", "console"):
            commands += [line for line in block.replace("\\\n", " ").splitlines() if BEGINS.match(line)]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    commands += [span for span in re.findall(r"`([^`]+)`", rest) if BEGINS.match(span)]
    return [_plain(command) for command in commands]


def of_makefile(text: str) -> list[str]:
    """The targets that `make help` lists, and the examples in its head."""
    targets = [f"make {name}" for name in re.findall(r"^([a-z-]+):.*?## ", text, flags=re.M)]
    examples = re.findall(r'\bmake [a-z-]+ (?:[A-Z_]+=(?:"[^"]*"|\S+) ?)+', text)
    return [_plain(command) for command in targets + [one for one in examples if "$" not in one]]


def of_comments(text: str) -> list[str]:
    """Commands in the comments of a YAML file, a line each, two spaces or more behind the sign."""
    return [_plain(one) for one in re.findall(r"^#\s{2,}(.+)$", text, flags=re.M) if BEGINS.match(one)]


def python_of(text: str, holding: str) -> str:
    """The block of Python in a page that has `holding` in it."""
    (block,) = [one for one in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S) if holding in one]
    return textwrap.dedent(block)


def _plain(command: str) -> str:
    """Without the remark behind it (`# ...`, or words after two spaces), blanks as one."""
    command = re.split(r"\s+#\s|(?<=\S)\s{2,}(?=[^\s])", command.replace("\n", " ").strip())[0]
    return " ".join(command.split())
