# Copyright 2026 The FusionMatch team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
The pages in a real browser, as a person meets them: reports at the width of a phone and of a desktop and as printed,
in both languages; the search page with what one does there. Takes Chromium and `pip install playwright`.

    python benchmarks/browser.py --run adapter --catalogue shop/products.csv --model_name_or_path adapter base \\
        --query "a striped mug" --image photo.jpg --output_dir shots

Says of each page what was looked at, ends with 1 where something is wrong, and leaves a picture of everything.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from fusionmatch.report import write_report
from fusionmatch.report.rollout import Rollout, write_template


PORT = 7861
WIDTHS = {"phone": 390, "desktop": 1280}
# Cells whose words are wider than they are, and so lie over the next one.
CROWDED = (
    "[...document.querySelectorAll('th, td')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"
)
BROKEN = "[...document.images].filter(e => !e.naturalWidth).length"
WIDER = "document.scrollingElement.scrollWidth - window.innerWidth"


class Look:
    """What is found, said as it is found."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.wrong = 0

    def say(self, what: str, fine: bool, found: object = "") -> None:
        """One thing that was looked at."""
        self.wrong += not fine
        print(f"{'ok    ' if fine else 'WRONG '} {what}{'' if fine else f': {found}'}", flush=True)

    @contextmanager
    def page(self, browser: Browser, what: str, width: int, inside: str) -> Iterator[Page]:
        """A page of this width that may ask for nothing outside, and says nothing on its console."""
        outside: list[str] = []
        said: list[str] = []
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda r: None if r.url.startswith((inside, "data:", "blob:")) else outside.append(r.url))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        yield page
        self.say(f"{what}: no request leaves it", not outside, outside[:3])
        self.say(f"{what}: nothing on the console", not said, said[:3])
        page.close()


def reports(look: Look, browser: Browser, run: Path) -> None:
    """The report with a rollout sheet."""
    example = look.output_dir / "rollout.yaml"
    rollout = Rollout.load(example if example.is_file() else write_template(example))
    for language in ("en", "ja"):
        path = write_report(look.output_dir / f"report-{language}.html", [run], language, rollout).resolve()
        for name, width in WIDTHS.items():
            what = f"report, {language}, {name}"
            with look.page(browser, what, width, path.as_uri()) as page:
                page.goto(path.as_uri())
                look.say(f"{what}: not wider than the window", page.evaluate(WIDER) <= 0, page.evaluate(WIDER))
                look.say(f"{what}: words fit their cells", not page.evaluate(CROWDED), page.evaluate(CROWDED)[:3])
                look.say(f"{what}: every picture shows", not page.evaluate(BROKEN), page.evaluate(BROKEN))
                page.screenshot(path=look.output_dir / f"report-{language}-{name}.png", full_page=True)
                if name == "desktop":
                    page.pdf(path=look.output_dir / f"report-{language}.pdf", format="A4")


def search_page(look: Look, browser: Browser, language: str, query: str, image: Path) -> None:
    """Types, searches, clicks a result, asks for more like it, changes the model, and gives a picture."""
    what = f"search page, {language}"
    with look.page(browser, what, WIDTHS["desktop"], f"http://127.0.0.1:{PORT}") as page:
        page.goto(f"http://127.0.0.1:{PORT}")
        page.fill("#query textarea, #query input", query)
        page.click("#go")
        results = page.locator("#results .grid-container button")
        results.first.wait_for()

        def captions() -> list[str]:
            return results.all_inner_texts()

        def changed(before: list[str]) -> bool:
            for _ in range(1800):  # a model that was not asked before looks at the whole catalogue first
                if captions() not in (before, []):
                    return True
                time.sleep(0.1)
            return False

        first = captions()
        look.say(f"{what}: results for {query!r}", len(first) > 1, first)
        page.screenshot(path=look.output_dir / f"search-{language}.png")
        results.nth(1).click()
        page.locator("#details h3").wait_for()
        details = page.inner_text("#details")
        look.say(f"{what}: a click shows the text", details.split("\n")[0] in first[1], details)
        page.click("#similar")
        look.say(f"{what}: more like it", changed(first), captions())
        similar = captions()
        page.click("#model input")
        page.locator("[role=option]").nth(1).click()
        look.say(f"{what}: another model finds others", changed(similar), captions())
        before = captions()
        page.set_input_files("input[type=file]", image)
        look.say(f"{what}: a picture is searched for", changed(before), captions())
        page.screenshot(path=look.output_dir / f"search-{language}-picture.png")
    with look.page(browser, f"{what}, phone", WIDTHS["phone"], f"http://127.0.0.1:{PORT}") as page:
        page.goto(f"http://127.0.0.1:{PORT}")
        page.locator("#query").wait_for()
        look.say(f"{what}, phone: not wider than the window", page.evaluate(WIDER) <= 0, page.evaluate(WIDER))
        page.screenshot(path=look.output_dir / f"search-{language}-phone.png")


@contextmanager
def served(args: argparse.Namespace, language: str) -> Iterator[None]:
    """`fusionmatch demo`, until it is no longer needed."""
    command = [sys.executable, "-m", "fusionmatch", "demo", args.catalogue, "--port", str(PORT)]
    command += ["--language", language, "--index_dir", str(args.output_dir / "index")]
    command += ["--model_name_or_path", *args.model_name_or_path]
    with (args.output_dir / "demo.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """Looks at everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a training, of which a report is made")
    parser.add_argument("--catalogue", required=True)
    parser.add_argument("--model_name_or_path", nargs=2, required=True, help="two models to change between")
    parser.add_argument("--query", default="a striped mug")
    parser.add_argument("--image", type=Path, required=True, help="a picture to search for")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    look = Look(args.output_dir)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        reports(look, browser, args.run)
        for language in ("en", "ja"):
            with served(args, language):
                wait(browser)
                search_page(look, browser, language, args.query, args.image)
        browser.close()
    sys.exit(bool(look.wrong))


def wait(browser: Browser) -> None:
    """Until the page answers: it reads the catalogue and embeds it first."""
    page = browser.new_page()
    for _ in range(600):
        try:
            page.goto(f"http://127.0.0.1:{PORT}")
            break
        except Exception:  # noqa: BLE001 - refused until it listens
            time.sleep(1)
    page.close()


if __name__ == "__main__":
    main()
