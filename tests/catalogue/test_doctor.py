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
"""What is said of a catalogue that can be used, and what `fusionmatch check` makes of it."""

import csv
import json

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusionmatch.catalogue import doctor, examine, pictures, read_catalogue, rows
from fusionmatch.catalogue.doctor import languages
from fusionmatch.catalogue.languages import languages_of
from fusionmatch.catalogue.quarantine import QuarantinedRow, write_quarantine
from fusionmatch.commands import main


def write(folder, rows, name="shop.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(path, **kwargs):
    return [(note.row, note.reason) for note in examine(read_catalogue(path), **kwargs)]


@pytest.fixture
def noise(tmp_path):
    def save(name, seed, size=(64, 64), **kwargs):
        import numpy as np

        pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        if name.endswith("tif"):
            picture = picture.convert("CMYK")
        if kwargs.pop("turned", False):
            kwargs["exif"] = Image.Exif()
            kwargs["exif"][274] = 6
        picture.save(tmp_path / name, **kwargs)
        return name

    return save


def test_pictures_that_are_used_but_worth_a_look(tmp_path, noise):
    frames = [Image.new("P", (64, 64), color) for color in (1, 9)]
    frames[0].putpixel((3, 3), 200)
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (64, 64), "white").save(tmp_path / "blank.jpg")
    names = [noise("tiny.png", 1, (20, 64)), noise("print.tif", 2), noise("turned.jpg", 3, turned=True)]
    names += ["moves.gif", "blank.jpg", noise("good.jpg", 4, quality=20)]
    notes = found(write(tmp_path, [{"image": name, "text": name} for name in names]))
    assert (1, pictures.TINY) in notes
    assert (2, pictures.FOR_PRINT) in notes
    assert (3, pictures.TURNED) in notes
    assert (4, pictures.ANIMATED) in notes
    assert (5, pictures.BLANK) in notes
    assert not [note for note in notes if note[0] == 6]


def test_what_products_share(tmp_path, noise):
    noise("a.png", 1), noise("b.png", 2), noise("c.png", 3)
    Image.open(tmp_path / "a.png").convert("RGB").save(tmp_path / "copy.jpg", quality=95)
    rows = [
        {"sku": "1", "product_id": "x", "image": "a.png", "text": "A red hat"},
        {"sku": "2", "product_id": "x", "image": "copy.jpg", "text": "A hat, red"},
        {"sku": "3", "product_id": "y", "image": "b.png", "text": "a red hat."},
        {"sku": "3", "product_id": "z", "image": "c.png", "text": "A hat"},
        {"sku": "5", "product_id": "z", "image": "a.png", "text": "A hat"},
    ]
    intake = read_catalogue(write(tmp_path, rows))
    notes = examine(intake)
    by_row = {(note.row, note.reason): note for note in notes}
    assert by_row[1, doctor.SHARED_TEXT].detail == "also y"
    assert by_row[3, doctor.SHARED_TEXT].detail == "also x"
    assert (4, doctor.SHARED_TEXT) not in by_row  # twice within one product
    assert by_row[5, doctor.SHARED_PICTURE].detail == "also x"
    assert by_row[2, doctor.SHARED_PICTURE].detail == "also z"
    assert by_row[4, doctor.REPEATED_ID].value == "3"
    assert notes == sorted(notes, key=lambda note: note.row)

    alone = examine(read_catalogue(write(tmp_path, [*rows[:2], rows[3]])))
    assert [(note.row, note.reason, note.detail) for note in alone] == [(2, doctor.COPY, "of a.png")]


def test_leaks_and_long_texts(tmp_path, noise):
    names = [noise(f"{number}.png", number) for number in range(4)]
    rows = [
        {"image": names[0], "text": "One hat", "product": "x", "split": "train"},
        {"image": names[1], "text": "Two hats", "product": "x", "split": "test"},
        {"image": names[2], "text": "Three hats of very many words", "product": "y", "split": "test"},
    ]
    path = write(tmp_path, rows)
    intake = read_catalogue(path, split_column="split")
    notes = examine(intake, count_tokens=lambda texts: [len(text.split()) for text in texts], max_tokens=4)
    assert [(note.row, note.reason, note.detail) for note in notes] == [
        (1, doctor.LEAKING_PRODUCT, "test, train"),
        (2, doctor.LEAKING_PRODUCT, "test, train"),
        (3, doctor.LONG_TEXT, "6 tokens, 4 are read"),
    ]


ENGLISH = [
    "A sturdy red boot for long walks in the rain",
    "A blue jacket with a warm lining",
    "The softest of our hats",
]
GERMAN = "Ein fester roter Stiefel für lange Wanderungen im Regen"
JAPANESE = "雨の日の散歩に向いた丈夫な赤いブーツ"


def test_languages_of_a_catalogue(tmp_path, noise):
    texts = [*ENGLISH, JAPANESE, "red boot", "帽子", "1234"]
    rows = [{"image": noise(f"{i}.png", i), "text": text} for i, text in enumerate(texts)]
    # What is too short to tell has one of the languages that others are in.
    shares = languages(read_catalogue(write(tmp_path, rows)))
    assert dict(shares) == pytest.approx({"en": 4 / 7, "ja": 2 / 7, "und": 1 / 7})
    # A sample is not misled by languages that take turns.
    rows = [
        {"image": noise(f"{i % 4}.png", i % 4), "text": f"{JAPANESE if i % 2 else ENGLISH[0]}, {i}"}
        for i in range(400)
    ]
    shares = dict(languages(read_catalogue(write(tmp_path, rows)), most=199))
    assert shares == pytest.approx({"en": 0.5, "ja": 0.5}, abs=0.1)


def test_a_long_text_says_nothing_of_titles_too_short_to_tell():
    titles = ["red boot", "blue jacket", "soft hat", "wool scarf", "rain coat"] * 4
    assert languages_of([*titles, GERMAN]) == (["und"] * 20 + ["de"], pytest.approx([False] * 20 + [True]))


def test_texts_in_another_language_than_most_are_named(tmp_path, noise):
    texts = [f"{text}, size {size}" for size in range(20) for text in ENGLISH[:2]] + [
        GERMAN,
        "bottes",
        JAPANESE,
        GERMAN,
    ]
    rows = [{"image": noise(f"{i}.png", i), "text": text, "product": i} for i, text in enumerate(texts)]
    notes = examine(read_catalogue(write(tmp_path, rows)))
    named = [(note.row, note.value, note.detail) for note in notes if note.reason == doctor.OTHER_LANGUAGE]
    assert named == [(41, GERMAN, "de, most are en"), (43, JAPANESE, "ja, most are en")]
    # A catalogue in two languages has no odd one out.
    rows += [{"image": noise(f"{i}.png", i), "text": f"{JAPANESE}{i}", "product": i} for i in range(44, 60)]
    assert not [n for n in examine(read_catalogue(write(tmp_path, rows))) if n.reason == doctor.OTHER_LANGUAGE]


@given(st.lists(st.text(max_size=40), max_size=12))
@settings(deadline=None, max_examples=50)
def test_every_text_has_a_language(texts):
    codes, sure = languages_of(texts)
    assert len(codes) == len(sure) == len(texts)
    assert all(code.isalpha() for code in codes)
    # Nothing is kept from one catalogue to the next.
    assert languages_of([GERMAN])[0] == ["de"]


def test_a_workbook_is_read_as_the_csv_one_would_save(tmp_path, noise, caplog):
    book = openpyxl.Workbook()
    book.active.title = "Products"
    rows = [
        ("product_id", "image", "title", "price"),
        (12, noise("a.png", 1), "帽子", 9.5),
        (13, noise("b.png", 2), None, 8),
    ]
    for row in rows:
        book.active.append(row)
    # As people make them: a note beside the table, and an empty row above and within it.
    book.active.insert_rows(1)
    book.active.insert_rows(3)
    book.active["H5"] = "ask Anna; about | this"
    book.create_sheet("Notes")
    book.save(tmp_path / "shop.xlsx")
    intake = read_catalogue(tmp_path / "shop.xlsx")
    assert intake.dataset["product"][:] == ["12"]
    assert intake.dataset["texts"][:] == [["帽子"]]
    assert [(fault.source, fault.row) for fault in intake.quarantine] == [("shop.xlsx", 2)]
    assert "has 2 sheets; the first one, 'Products', is read" in caplog.text
    (tmp_path / "broken.xlsx").write_bytes((tmp_path / "shop.xlsx").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"broken\.xlsx' is no workbook that can be read"):
        read_catalogue(tmp_path / "broken.xlsx")


def test_the_command_shows_and_writes(tmp_path, noise, capsys):
    rows = [{"image": noise("a.png", 1), "text": "A hat"}, {"image": "gone.png", "text": "Gone"}]
    rows += [{"image": noise("b.png", 2, (20, 20)), "text": "a hat"}]
    path = write(tmp_path, rows)
    assert main(["check", str(path), "--output_dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "3 rows read" in shown and "Left out: 1" in shown and "Worth a look, used all the same: 3" in shown
    assert "row 2: gone.png" in shown
    written = list(csv.DictReader((tmp_path / "out" / "findings.csv").read_text("utf-8-sig").splitlines()))
    assert [row["row"] for row in written] == ["1", "3", "3"]
    assert (tmp_path / "out" / "quarantine.csv").read_text("utf-8-sig").count("\n") == 2
    first = (tmp_path / "out" / "findings.csv").read_bytes()
    assert main(["check", str(path), "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "findings.csv").read_bytes() == first
    assert main(["check", str(path), "--format", "xml"]) == 1
    assert "must be csv or jsonl, got 'xml'" in capsys.readouterr().err


def test_rows_that_repeat_others(tmp_path, noise):
    row = {"image": noise("a.png", 0), "text": "a mug", "id": "1", "sku": "S1"}
    other = {"image": noise("b.png", 1), "text": "a cup", "id": "2", "sku": "S1"}
    # The same picture and text as another size is no fault.
    path = write(tmp_path, [row, other, row, row | {"id": "3", "sku": "S3"}, row])
    assert found(path) == [(2, doctor.REPEATED_ID), (3, rows.REPEATED_ROW), (5, rows.REPEATED_ROW)]


def test_what_a_spreadsheet_would_take_for_a_formula(tmp_path):
    fault = QuarantinedRow("a.csv", 1, "a reason", value='=HYPERLINK("http://x")', detail="-")
    text = write_quarantine([fault], tmp_path / "q.csv").read_text(encoding="utf-8-sig")
    cells = next(csv.DictReader(text.splitlines()))
    assert (cells["value"], cells["detail"], cells["row"]) == ('\'=HYPERLINK("http://x")', "-", "1")
