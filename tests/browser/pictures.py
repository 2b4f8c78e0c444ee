"""Draw the documentation's pictures of pages: docs/images/explorer.png.

    python tests/browser/pictures.py        needs Chromium; see conftest.py

The conversation is the one below, the tokenizer the embedded one, so the picture is the same again but for the fonts
that are installed.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser.conftest import launched  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from recipes.configuration.compose import compose  # noqa: E402
from recipes.explore import explore  # noqa: E402

TURNS = (
    ("A box holds 14 stamps. Now Tom adds 16. How many stamps?", "Add 14 + 16: 4 + 6 = 10, 1 + 1 + 1 = 3.", "Thirty."),
    ("Then Tom finds 47 more. How many now?", "Recall 30.\nAdd 30 + 47: 0 + 7 = 7, 3 + 4 = 7.", "Seventy seven."),
)


def record() -> dict:
    messages = []
    for asked, thought, said in TURNS:
        messages += [
            {"role": "user", "content": asked},
            {"role": "assistant", "reasoning_content": thought, "content": said},
        ]
    return {"messages": messages}


def main(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stamps.jsonl").write_text(json.dumps(record()))
        config = compose(
            ["data=jsonl", f"data.path={folder}/stamps.jsonl", "trainer.epochs=1", "attention.block_size=16"]
        )
        page_path = explore(config, ["0"], Path(folder) / "page.html")
        with sync_playwright() as playwright:
            browser = launched(playwright)
            page = browser.new_page(viewport={"width": 1180, "height": 1400}, device_scale_factor=1.25)
            page.goto(page_path.as_uri())
            # In the second turn's thinking: it sees the plain copy of the first answer and not the thinking before.
            page.evaluate("choose(row.generations()[0] + 13)")
            page.wait_for_timeout(300)
            tree = page.locator("#tree").bounding_box()
            clip = {"x": 0, "y": 0, "width": 1180, "height": tree["y"] + tree["height"] + 20}
            page.screenshot(path=path, clip=clip)
            browser.close()
    print(path)


if __name__ == "__main__":
    main(ROOT / "docs/images/explorer.png")
