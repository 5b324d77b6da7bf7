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
"""Every figure names its file and what in it, on the screen and on paper, and what is named holds the figure."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote

import pyarrow.parquet
import pytest
import torch
import yaml

from fusionmatch.catalogue import read_catalogue
from fusionmatch.catalogue.quarantine import QuarantinedRow, write_quarantine
from fusionmatch.catalogue.sample_shop import write_sample_shop
from fusionmatch.evaluation.queries import QueryResults
from fusionmatch.evaluation.retrieval import CatalogueEmbeddings, unique_texts
from fusionmatch.report import Record, Rollout, write_report
from fusionmatch.report.record import shortened
from fusionmatch.report.rollout import write_template
from fusionmatch.report.words import Words, _read

from .conftest import PRODUCTS


# The last product has nothing to find.
BEFORE = [(7 * i) % 23 + 1 for i in range(PRODUCTS - 1)] + [0]
AFTER = [(5 * i) % 13 + 1 for i in range(PRODUCTS - 1)] + [0]
# Names of measures and products, and what is no text of the page.
NO_FIGURES = {"figcaption", "h1", "h2", "h3", "style", "thead", "title"}
NUMBER = r"[-+−]?[\d,]+(?:\.\d+)?"


class Figures(HTMLParser):
    """Title, text and link of each figure of a page, and text with digits that has no title."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cited, self.bare, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "img", "br", "hr", "path", "use"):
            self.open.append((tag, attrs))
        if "title" in attrs:
            self.cited.append([attrs["title"], "", attrs.get("href")])
        if not attrs.get("href", "#").startswith("#"):
            self.links.append(attrs["href"])

    def handle_endtag(self, tag):
        # A part of a page closes what it did not open.
        if tag not in ("path", "use") and self.open:
            self.open.pop()

    def handle_data(self, data):
        if any("title" in attrs for _, attrs in self.open):
            self.cited[-1][1] += data
        elif re.search(r"\d", data) and not any(
            tag in NO_FIGURES or attrs.get("class") in ("source", "place") for tag, attrs in self.open
        ):
            self.bare.append(data.strip())


@pytest.fixture(params=["en", "ja"])
def page(request, make_run, tmp_path):
    """Two runs with everything that a page may hold, and the folder of the first."""
    runs = [make_run("first", BEFORE, AFTER, seen_products=2), make_run("second", BEFORE, [*AFTER[-2::-1], 0])]
    for run in runs:
        write_quarantine(
            [QuarantinedRow("a.csv", row, "row is not CSV" if row % 5 else "text") for row in range(1, 30)],
            run / "findings.jsonl",
        )
    template = write_template(tmp_path / "rollout.yaml")
    template.write_text(template.read_text("utf-8").replace("# observed", "observed").replace("#   ", "  "), "utf-8")
    path = write_report(tmp_path / "pages" / "r.html", runs, request.param, Rollout.load(template))
    return SimpleNamespace(path=path, text=path.read_text("utf-8"), run=runs[0], words=Words(request.param))


def test_no_figure_is_without_source(page):
    sentences = [*(each[page.words.language] for each in _read()["sentences"].values())]
    told = {part.strip() for each in sentences for part in re.split(r"{\w+}", each)}
    told.add(page.words("weak_note", few=5))
    figures = Figures(page.text)
    bare = [each for each in figures.bare if each not in told and each.removeprefix("RSUM. ") not in told]
    # Names of measures and of runs, beside their figures.
    assert [each for each in bare if not re.fullmatch(r"\S+ → \S+ R@\d+|\S+/(first|second)", each)] == []
    assert len(figures.cited) > 200
    assert all(re.match(r"\S+(, \S+)?: \S", title) for title, _, _ in figures.cited)


def test_what_is_named_on_the_screen_is_printed(page):
    sections = re.split(r"<h[12]", page.text)[1:]
    for section in sections:
        printed = " ".join(
            unescape(re.sub("<[^>]*>", "", line)) for line in re.findall('class="source">(.*)</p>', section)
        )
        for title, figure, _ in Figures(section.partition(">")[2]).cited:
            for place in title.split("; "):
                files, _, found = place.partition(": ")
                # What is counted; in which rows is looked at below.
                fields = re.findall(r"[\w@]+", re.split(r" \(| = ", found)[0])
                for name in (files, *fields):
                    assert name.removeprefix("chance_") in printed, (figure, place)
    # On paper a group's rows are found by the value in the first column of its table.
    rows = page.words("rows_count", count="12 / 12")
    lines = re.findall(r"direction = i2t / t2i, color = (.*?)\)", page.text)
    assert [sorted(each.split(", ")) for each in lines] == 2 * [[f"blue &lt;i&gt;: {rows}", f"red: {rows}"]]
    assert page.text.count('class="query"') == page.text.count("report.json</a>: examples.") == 4


def test_links_lead_to_the_files_from_wherever_the_page_lies(page, make_run):
    run = make_run("an other #1", BEFORE, AFTER)
    inside = write_report(run / "report.html", [run])
    for path, files in ((page.path, 13), (inside, 6)):
        links = {(path.parent / unquote(link)).resolve() for link in Figures(path.read_text("utf-8")).links}
        assert len(links) == files
        assert all(link.is_file() for link in links)
    assert 'href="metrics.json" title="metrics.json: after.rsum"' in inside.read_text("utf-8")


def value(content, path):
    for name in path.split("."):
        content = content[name]
    return content


def test_named_fields_hold_the_figures(page):
    seen = set()
    for title, figure, link in Figures(page.text).cited:
        found = re.fullmatch(r"([\w.]+): ([\w.@]+)(?: ([-/]) ([\w.@]+))?", title)
        shown = re.findall(NUMBER, figure)
        # Besides numbers there are names, dates and columns.
        if found is None or found[2] in ("base", "columns_read", "date", "machine", "version") or not shown:
            continue
        file = (page.path.parent / unquote(link)).resolve()
        assert file.name == found[1]
        content = yaml.safe_load(file.read_text("utf-8"))
        wanted = value(content, found[2])
        if found[3]:
            other = float(found[4]) if found[4].isdigit() else value(content, found[4])
            wanted = wanted - other if found[3] == "-" else wanted / other
        if "%" in figure or found[2] == "search.smallest_change":
            wanted *= 100
        digits = len(shown[0].partition(".")[2])
        assert abs(float(re.sub("[,−]", "", shown[0]))) == pytest.approx(abs(wanted), abs=0.501 * 10**-digits), title
        seen.add((file.parent.name, title))
    keys = [f"{way}_{name}" for way in ("i2t", "t2i") for name in ("recall@1", "recall@5", "recall@10", "median_rank")]
    for key in [*keys, "rsum"]:
        for field in (f"before.{key}", f"after.{key}", f"after.{key} - before.{key}"):
            assert ("first", f"metrics.json: {field}") in seen
    assert {
        ("second", "metrics.json: training_seconds / 60"),
        ("second", "metrics.json: trainable_parameters / parameters"),
        ("first", "metrics.json: pictures.train"),
        ("first", "report.json: rows_read"),
        (page.path.parents[1].name, "rollout.yaml: test.power"),
    } <= seen


def recall(table, direction, k):
    ranks = [row["rank"] for row in table if row["direction"] == direction and row["rank"] > 0]
    return 100 * sum(rank <= k for rank in ranks) / len(ranks)


def test_named_rows_of_the_queries_hold_the_figures(page):
    rows_word = page.words("rows_count", count=r"(\d+)")
    seen = []
    for title, figure, link in Figures(page.text).cited:
        found = re.fullmatch(rf"([\w.]+)(, \S+)?: (?:rank ≤ ([\d, ]+)|\S+ \S+) \((?:(.*): )?{rows_word}\)", title)
        if found is None or not re.fullmatch(NUMBER, figure):
            continue
        file, other, ks, told_by, count = found.groups()
        if other and "color = " not in (told_by or ""):  # ends of an interval, p, and parts that were compared
            continue
        conditions = dict(each.split(" = ") for each in (told_by or "").split(", ") if each)
        folder = (page.path.parent / unquote(link)).parent
        parts = []
        for name in [file, *([other.removeprefix(", ")] if other else [])]:
            table = pyarrow.parquet.read_table(folder / name).to_pylist()
            parts.append([row for row in table if all(row[column] == each for column, each in conditions.items())])
        assert len(parts[0]) == int(count), title
        if ks:
            ways = [conditions["direction"]] if "direction" in conditions else ["i2t", "t2i"]
            sides = [sum(recall(part, way, int(k)) for way in ways for k in ks.split(", ")) for part in parts]
            wanted = sides[0] - sides[1] if other else sides[0]
        else:
            wanted = len({row["product"] for row in parts[0]})
        assert float(figure) == pytest.approx(wanted, abs=0.0501), title
        seen.append((folder.name, told_by, ks, bool(other)))
    for run in ("first", "second"):
        assert (run, None, "1, 5, 10", False) in seen  # side by side
        for part in ("color = red", "color = blue <i>"):
            assert {(run, f"direction = {way}, {part}", "10", False) for way in ("i2t", "t2i")} <= set(seen)
            assert {(run, part, "1, 5, 10", change) for change in (False, True)} <= set(seen)
            assert (run, part, None, False) in seen  # products


def test_the_row_of_an_example_holds_its_query_and_its_ranks(page):
    own = page.text.split('<h1 id="run1">')[1].split('<h1 id="run2">')[0]
    row_word = page.words("row_number", row=r"(\d+)")
    boxes = re.findall(r'<div class="query">.*?</p>.*?</p>', own, flags=re.S)
    for box, kind in zip(boxes, ("hits", "pictures"), strict=True):
        (row,) = set(re.findall(rf"rank \({row_word}\)", box))
        record = json.loads((page.run / "report.json").read_text("utf-8"))["examples"][kind][0]
        for name, side in (("queries_before.parquet", "before"), ("queries.parquet", "after")):
            query = pyarrow.parquet.read_table(page.run / name).to_pylist()[int(row) - 1]
            (rank,) = re.findall(rf'title="{name}: rank \({page.words("row_number", row=row)}\)">(\d+)</a>', box)
            assert int(rank) == query["rank"] == record[side]
            assert query["product"] == record["wanted"]["product"]
            assert query["query"] == (record["text"] or "i2t <3>")
        assert f"examples.{kind}[0]" in box
        place = page.words("place", file=record["wanted"]["file"], row=record["wanted"]["row"])
        assert f'<span class="place">{place}</span>' in own


def test_an_example_of_a_run_that_kept_no_row_names_product_and_direction(make_run, tmp_path):
    run = make_run("old", BEFORE, AFTER)
    content = json.loads((run / "report.json").read_text("utf-8"))
    for examples in content["examples"].values():
        for example in examples:
            del example["row"]
    (run / "report.json").write_text(json.dumps(content), "utf-8")
    text = write_report(tmp_path / "r.html", [run]).read_text("utf-8")
    assert "rank (direction = t2i, product = p0 &lt;b&gt;) · " in text
    assert "rank (direction = i2t, product = p3 &lt;b&gt;) · " in text


def test_the_record_keeps_the_row_of_each_example(tmp_path):
    intake = read_catalogue(write_sample_shop(tmp_path, num_products=24))
    test = intake.dataset
    texts, products = unique_texts(test)
    torch.manual_seed(0)
    sides = [
        CatalogueEmbeddings(
            *(torch.nn.functional.normalize(torch.randn(count, 8), dim=-1) for count in (len(test), len(texts))),
            list(test["product"]),
            products,
            texts,
        )
        for _ in range(2)
    ]
    result = SimpleNamespace(before_embeddings=sides[0], after_embeddings=sides[1])
    facts = {"what": "adapter", "catalogue": "", "base": "", "machine": "", "untrained_base": False}
    record = Record.from_fit(result, {"train": test, "test": test}, intake, **facts)
    before, after = (QueryResults.from_embeddings(each, test).table.to_pylist() for each in sides)
    places = dict(zip(test["image_id"], zip(intake.files, test["source_row"], strict=True), strict=True))
    examples = [each for own in record.examples.values() for each in own]
    assert {each.text is None for each in examples} == {True, False}
    for each in examples:
        query = after[each.row - 1]
        assert (before[each.row - 1]["rank"], query["rank"]) == (each.before, each.after)
        assert query["product"] == each.wanted.product
        assert query["direction"] == ("t2i" if each.text else "i2t")
        if each.text:
            assert shortened(query["query"]) == each.text
        else:
            assert places[query["query"]] == (each.wanted.file, each.wanted.row)


def test_lines_of_faults_are_those_of_the_file(page):
    rows = [json.loads(line) for line in (page.run / "findings.jsonl").read_text("utf-8").splitlines()]
    own = page.text.split('<h1 id="run1">')[1].split('<h1 id="run2">')[0]
    found = re.findall(r'title="findings\.jsonl: reason = ([^"]*)">(\d+)</a></td>.*<td class="place">(.*)</td>', own)
    assert [(reason, int(count)) for reason, count, _ in found] == [("row is not CSV", 24), ("text", 5)]
    for reason, _, lines in found:
        ranges = [[int(end) for end in each.split("–")] for each in re.findall(r"\d+(?:–\d+)?", lines)]
        named = [line for ends in ranges for line in range(ends[0], ends[-1] + 1)]
        wanted = [line for line, row in enumerate(rows, start=1) if row["reason"] == reason]
        assert named == wanted[: len(named)]
        assert ("…" in lines) == (named != wanted)
