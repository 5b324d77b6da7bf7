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
"""What is broken on purpose, or by accident, ends in words or in the quarantine; what is sound beside it is kept."""

import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from fusionmatch.catalogue import excel, pictures, read_catalogue
from fusionmatch.catalogue.rows import NO_TEXT
from fusionmatch.commands import USER_ERRORS

from .broken_files import WORKBOOK, saved, sheet_of_rows, sheet_with_a_far_cell, tables, write_table
from .broken_pictures import SOUND, shop_of, zipped


ROOT = Path(__file__).parents[2]
needs_pipes = pytest.mark.skipif(
    not (hasattr(os, "mkfifo") and hasattr(socket, "AF_UNIX")), reason="this platform has no named pipes and sockets"
)


@needs_pipes
def test_no_broken_catalogue_ends_in_a_traceback_hangs_or_leads_outside():
    command = [sys.executable, "-m", "benchmarks.fuzz_intake", "--cases", "200"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert "200 broken catalogues: 0 with a traceback, a hang or a read outside." in run.stdout


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=tables())
def test_drawn_tables_are_read_whole_or_refused_in_words(tmp_path, rows):
    try:
        intake = read_catalogue(write_table(rows, tmp_path))
    except USER_ERRORS as error:
        assert type(error) is ValueError
        return
    assert intake.rows_read == len(rows) + 1
    assert all(Path(row["path"]).parent == tmp_path.resolve() for row in intake.dataset.data["image"].to_pylist())
    assert all(texts and all(text.strip() for text in texts) for texts in intake.dataset["texts"])
    assert {fault.row for fault in intake.quarantine} <= set(range(1, len(rows) + 2))


@pytest.mark.parametrize("odd", ["[" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "1" * 5_000])
def test_a_json_line_that_python_cannot_hold_is_quarantined(tmp_path, odd):
    path = shop_of([], tmp_path)
    path.write_text(path.read_text() + f'{{"image": "good.png", "text": "Odd", "more": {odd}}}\n')
    intake = read_catalogue(path)
    assert intake.dataset["texts"][:] == [["Thing 0"]]
    assert [(fault.row, fault.reason) for fault in intake.quarantine] == [(2, "line is not JSON")]
    path = path.rename(tmp_path / "shop.json")
    path.write_text(f"[{odd}]")
    with pytest.raises(ValueError, match="is no JSON list"):
        read_catalogue(path)


def test_half_an_emoji_in_a_json_list_costs_its_entry_alone(tmp_path):
    shop_of([], tmp_path)
    (tmp_path / "shop.json").write_text(
        '[{"image": "good.png", "text": "Hat \\ud83d"}, {"image": "good.png", "text": "Hat \\ud83c\\udfa9"}]'
    )
    intake = read_catalogue(tmp_path / "shop.json")
    assert intake.dataset["texts"][:] == [["Hat 🎩"]]
    assert [fault.row for fault in intake.quarantine] == [1]
    intake.write_quarantine(tmp_path / "quarantine.jsonl")


@needs_pipes
def test_what_is_no_file_is_no_shard(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")  # reading it would wait for ever
    (tmp_path / "b.parquet").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no table"):
        read_catalogue(tmp_path)
    pq.write_table(pa.table({"image": ["a.png"], "text": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="1 times: picture file is missing"):
        read_catalogue(tmp_path)


@pytest.mark.parametrize("embedded", [False, True])
def test_parquet_texts_that_are_no_utf8_cost_their_cells_alone(tmp_path, caplog, embedded):
    shop_of([], tmp_path)
    image = SOUND["PNG"] if embedded else "good.png"
    texts = pa.array([b"Hat", b"\xff\xfe", b"Cap"], pa.binary()).view(pa.string())
    notes = pa.array([b"\xff", b"new", b"old"], pa.binary()).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 2, 3, 3], texts)
    table = pa.table({"image": [image] * 3, "text": texts, "note": notes, "more": lists})
    pq.write_table(table, tmp_path / "a.parquet")
    with caplog.at_level("WARNING"):
        intake = read_catalogue(tmp_path / "a.parquet")
    assert intake.rows_read == 3
    assert [text for texts in intake.dataset["texts"] for text in texts] == ["Hat", "Cap"]
    assert [(fault.row, fault.reason, fault.field) for fault in intake.quarantine] == [(2, NO_TEXT, "text")]
    assert (
        "'a.parquet': 1 cell(s) of the column 'note' cannot be read and stay empty, the first one in row 1"
        in caplog.text
    )
    assert intake.dataset["note"][0] is None


def test_a_stray_cell_far_from_the_table_is_named(tmp_path):
    path = tmp_path / "shop.xlsx"
    path.write_bytes(sheet_with_a_far_cell(b"XFD1048576"))
    with pytest.raises(ValueError, match=r"down to row 1,048,576 and over to column 16,384.*delete what stands far"):
        read_catalogue(path)
    path.write_bytes(WORKBOOK)
    shop_of([], tmp_path)
    assert read_catalogue(path).dataset["texts"][:] == [["Thing", "Other"]]


FIRST = b'<row r="1"><c r="A1"><v>1</v></c></row>'


@pytest.mark.parametrize(
    "far",
    [
        b'<row r="90"><c r="ax90"><v>1</v></c></row>',
        b'<row r="90"><c r = "AX90"><v>1</v></c></row>',
        b"<row r='90'><c s='>' r='AX90'><v>1</v></c></row>",
        b'<x:row r="90"><x:c r="AX90"><x:v>1</x:v></x:c></x:row>',
        b'<row r="1048576"><c><v>1</v></c></row>',
        b"<row>" + b"<c/>" * 1000 + b"<c><v>1</v></c></row>",
        b"<row/>" * 1000 + b"<row><c><v>1</v></c></row>",
        b'<row r="90"><c r="' + b"B" * 2**17 + b'90"><v>1</v></c></row>',
    ],
)
def test_a_stray_cell_is_found_however_its_place_is_written(tmp_path, monkeypatch, far):
    monkeypatch.setattr(excel, "_MOST_CELLS", 1000)
    path = tmp_path / "shop.xlsx"
    path.write_bytes(sheet_of_rows(FIRST + far))
    with pytest.raises(ValueError, match=r"delete what stands far from the table|which is no place in a sheet"):
        read_catalogue(path)


def test_far_cells_that_are_not_laid_out_are_no_fault(tmp_path, monkeypatch):
    shop_of([], tmp_path)
    path = tmp_path / "shop.xlsx"
    book = openpyxl.load_workbook(io.BytesIO(WORKBOOK))
    book.active["XFD1048576"].font = openpyxl.styles.Font(bold=True)
    book.create_sheet("Notes")["XFD1048576"] = "a stray one"
    path.write_bytes(saved(book))
    assert read_catalogue(path).dataset["texts"][:] == [["Thing", "Other"]]
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["xl/workbook.xml"] = files["xl/workbook.xml"].replace(b'"rId1"', b'"rId2"', 1)
    elsewhere = {
        name.replace("worksheets/", "Others/"): part.replace(b"worksheets/", b"others/")
        for name, part in files.items()
    }
    for changed in (files, elsewhere, files | {"abc/workbook.xml": b"<workbook/>"}):
        path.write_bytes(zipped(changed))
        with pytest.raises(ValueError, match="delete what stands far from the table"):
            read_catalogue(path)

    # A large table is filled.
    monkeypatch.setattr(excel, "_MOST_CELLS", 5)
    path.write_bytes(WORKBOOK)
    assert read_catalogue(path).dataset["texts"][:] == [["Thing", "Other"]]


def test_a_workbook_with_a_password_is_named(tmp_path):
    data = bytearray(WORKBOOK)
    with zipfile.ZipFile(io.BytesIO(WORKBOOK)) as archive:
        at = archive.start_dir
        for part in archive.infolist():
            data[at + 8] |= 1  # encrypted
            at += 46 + len(part.filename) + len(part.extra) + len(part.comment)
    (tmp_path / "shop.xlsx").write_bytes(data)
    with pytest.raises(ValueError, match=r"is no workbook that can be read: .*password required"):
        read_catalogue(tmp_path / "shop.xlsx")


def test_a_picture_that_is_a_program_is_not_run(tmp_path):
    path = shop_of(["program.jpg"], tmp_path)
    (tmp_path / "program.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    )
    (fault,) = read_catalogue(path).quarantine
    assert (fault.reason, fault.detail) == (
        pictures.UNREADABLE,
        "PostScript is not decoded; save the picture as PNG or JPEG",
    )


def test_exports_that_were_joined_keep_their_first_column(tmp_path):
    shop_of([], tmp_path)
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfimage,text\ngood.png,Thing\n")
    assert read_catalogue(tmp_path / "a.csv").dataset["texts"][:] == [["Thing"]]


def test_a_file_without_rows_says_so(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no JSON object"):
        read_catalogue(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match="holds no JSON object"):
        read_catalogue(tmp_path / "a.json")
