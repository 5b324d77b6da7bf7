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
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from fusionmatch.catalogue import doctor, downloads, pictures, rows, sources
from fusionmatch.commands import main
from fusionmatch.evaluation import mismatches
from fusionmatch.report import Record, Rollout, Run, write_report
from fusionmatch.report.rollout import write_template
from fusionmatch.report.words import Words, _read

from .conftest import PRODUCTS


FIRST, LAST = [1] * PRODUCTS, [20] * PRODUCTS


class Page(HTMLParser):
    """Links, pictures and headings of a page, and whether its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.links, self.pictures, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "a":
            self.links.append(attrs["href"])
        if tag == "img":
            self.pictures.append(attrs["src"])
        if tag not in ("meta", "img", "br", "hr", "path", "use"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag


def test_the_page_stands_alone_escapes_and_links_to_the_files(make_run, tmp_path):
    run = make_run("adapter of may", LAST, FIRST)
    path = write_report(tmp_path / "pages" / "r.html", [run])
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert "http" not in text
    assert "<script>" not in text
    assert "&lt;script&gt;傘" in text
    assert page.pictures
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in page.pictures)
    files = {(path.parent / unquote(link)).resolve() for link in page.links}
    names = "report.json metrics.json queries.parquet queries_before.parquet quarantine.jsonl findings.jsonl"
    assert files == {run / name for name in names.split()}
    assert "products.csv, row 12" in text
    assert text.count("<svg") == 3
    # A change is coloured where it is shown, and only there.
    assert 'class="up"' in text


def test_the_verdict_comes_first_and_says_when_nothing_is_shown(make_run, tmp_path):
    better, same, worse = (
        write_report(tmp_path / f"{name}.html", [make_run(name, *ranks)]).read_text(encoding="utf-8")
        for name, ranks in (("b", (LAST, FIRST)), ("s", (FIRST, FIRST)), ("w", (FIRST, LAST)))
    )
    assert "<b>Better than before</b>" in better
    plain = re.sub(r"<[^>]*>", "", better)
    assert "Of 100 texts, 100 find a picture of their own product in the first place" in plain
    assert "before it was 0 and 0" in plain
    assert "<b>No difference shown</b>" in same
    assert "<b>Worse than before</b>" in worse


def test_in_japanese(make_run, tmp_path):
    run = make_run("a", LAST, FIRST)
    rollout = Rollout.load(write_template(tmp_path / "rollout.yaml"))
    text = write_report(tmp_path / "r.html", [run, make_run("b", LAST, FIRST)], "ja", rollout).read_text(
        encoding="utf-8"
    )
    assert '<html lang="ja">' in text
    assert "学習前より良くなりました" in text
    assert "画像ファイルがない" in text
    assert "products.csv 12行目" in text
    # Nothing is left in English but names of files, of the catalogue and of measures.
    # Lines of sources name fields.
    text = re.sub(r'<p class="source">出典.*?</p>', " ", text)
    body = re.sub(r"<svg.*?</svg>|<style>.*?</style>|<[^>]*>|products\.csv|shop &amp; co\.csv", " ", text, flags=re.S)
    for word in ("before", "after", "change", "picture", "rows", "From", "training", "guessed", "further"):
        assert not re.search(
            rf"\b{word}\b", re.sub(r"\S*(\.json|\.jsonl|\.parquet)|fusionmatch report \S+ .*", " ", body)
        ), word
    with pytest.raises(ValueError, match="en or ja, got 'de'"):
        write_report(tmp_path / "r.html", [run], language="de")


def test_several_runs_stand_side_by_side(make_run, tmp_path):
    runs = [make_run("first", LAST, [2] * PRODUCTS), make_run("second", LAST, FIRST)]
    text = write_report(tmp_path / "r.html", runs).read_text(encoding="utf-8")
    overview = text[: text.index("<hr>")]
    assert re.findall(r'href="#run\d">.*/(\w+)<', overview) == ["first", "second"]
    # Rank 1 in place of 2 is 100 points in each direction.
    assert "+200.0 [+200.0, +200.0]" in overview
    assert re.search(r"<td><a [^>]*>better</a></td>", overview)
    assert '<h1 id="run2">' in text


def test_every_sentence_is_there_in_both_languages_with_the_same_figures():
    for key, sentence in _read()["sentences"].items():
        figures = [sorted(re.findall(r"{(\w+)}", sentence[language])) for language in ("en", "ja")]
        assert figures[0] == figures[1], key
    words = Words("ja")
    reasons = [
        value
        for module in (doctor, downloads, pictures, rows, sources, mismatches)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and " " in value
    ]
    assert len(reasons) > 15
    for reason in reasons:
        assert words.value(reason) != reason, reason


def test_a_record_comes_back_as_it_was(make_run):
    run = Run.load(make_run("a", LAST, FIRST, seen_products=3))
    assert Record.load(run.record.save(run.folder)) == run.record
    assert run.record.seen_products == 3
    path = run.folder / "report.json"
    path.write_text(json.dumps({"version": "0.0.1"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"written by 0\.0\.1.*the run again"):
        Run.load(run.folder)
    assert run.differences["rsum"].value == pytest.approx(600)
    assert [row.row for row in run.left_out] == [3, 9]


def test_the_command_says_what_it_cannot_read(make_run, tmp_path, capsys):
    run = make_run("a", LAST, FIRST)
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    (run / "queries.parquet").unlink()
    assert main(["report", str(run)]) == 1
    assert "is no whole training run: queries.parquet missing" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "There is no folder" in capsys.readouterr().err
    assert main(["report"]) == 1
    assert "at least one run" in capsys.readouterr().err


def test_the_sheet_stands_in_the_page(make_run, tmp_path, capsys):
    run = make_run("a", LAST, FIRST)
    template = tmp_path / "rollout.yaml"
    assert main(["report", "--rollout_template", str(template)]) == 0
    assert main(["report", str(run), "--rollout_file", str(template)]) == 0
    text = re.sub(r"</?a\b[^>]*>", "", (run / "report.html").read_text(encoding="utf-8"))
    assert "8,393 searches a side, 7 days" in text
    assert '<span class="pill go">Go</span>' in text
    assert 'of the catalogue shown to be worse than before (2 parts compared, Holm): <b class="up">yes</b>' in text
    assert "2.0% of the rows cannot be used, at most 5.0% may" in text
    # 400 products x (1 x 6 - 1.5) minutes
    assert "30.0 h saved [" in text
    assert "900 EUR a month" in text
    assert Rollout.load(template).observed is None
