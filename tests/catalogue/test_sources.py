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
"""Every format a catalogue comes in, written as companies write it, read back whole."""

import json
import logging

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusionmatch.catalogue import load_catalogue, read_catalogue, sources
from fusionmatch.catalogue.pictures import NOT_NAMED, UNREADABLE


ROWS = [{"file_name": f"{number}.png", "text": f"Thing {number}", "colour": "red"} for number in range(4)]


@pytest.fixture
def shop(tmp_path, draw):
    for number, row in enumerate(ROWS):
        draw(row["file_name"], number)
    return tmp_path


def write_csv(path, rows=ROWS, delimiter=",", encoding="utf-8"):
    lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
    path.write_bytes("\r\n".join([*lines, ""]).encode(encoding))
    return path


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, rows, kind=None, **more):
    images = pa.array([row["image"] for row in rows], kind)
    table = pa.table({"image": images, "text": [row["text"] for row in rows], **more})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)
    return path


def embedded(shop, numbers, name="{}.png"):
    return [
        {"image": {"bytes": (shop / f"{n}.png").read_bytes(), "path": name.format(n)}, "text": f"Thing {n}"}
        for n in numbers
    ]


def assert_whole(intake):
    assert intake.quarantine == []
    assert intake.dataset["texts"][:] == [[row["text"]] for row in ROWS]
    assert intake.dataset["source_row"][:] == [1, 2, 3, 4]
    assert [picture.getpixel((0, 0)) for picture in intake.dataset["image"]] == [(n, 0, 7) for n in range(4)]
    assert intake.dataset.features["image"] == datasets.Image()


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding"),
    [
        ("a.csv", ",", "utf-8"),
        ("a.CSV", ",", "utf-8-sig"),
        ("a.csv", ";", "utf-8"),
        ("a.csv", "\t", "utf-16"),
        ("a.tsv", "\t", "utf-8"),
    ],
)
def test_delimited_text(shop, name, delimiter, encoding):
    intake = read_catalogue(write_csv(shop / name, delimiter=delimiter, encoding=encoding))
    assert_whole(intake)
    assert intake.dataset["image_id"][:] == ["0.png", "1.png", "2.png", "3.png"]
    assert intake.dataset["colour"][:] == ["red"] * 4


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blank_lines_before_the_header_do_not_hide_the_delimiter(shop, end):
    path = write_csv(shop / "a.csv", delimiter=";")
    text = path.read_text(encoding="utf-8")
    path.write_bytes((end * 2 + text.replace("\r\n", "\n").replace("\n", end)).encode())
    assert_whole(read_catalogue(path))


def test_json_lines_and_json_list(shop):
    assert_whole(read_catalogue(write_jsonl(shop / "a.jsonl")))
    assert_whole(read_catalogue(write_jsonl(shop / "b.json")))
    (shop / "c.json").write_text(json.dumps(ROWS, indent=1))
    assert_whole(read_catalogue(shop / "c.json"))
    (shop / "d.json").write_text(json.dumps([ROWS[0], *map(json.dumps, ROWS[1:])]))
    assert_whole(read_catalogue(shop / "d.json"))
    (shop / "e.json").write_text('\n\n[{"image" 1}]')
    with pytest.raises(ValueError, match=r"no JSON list.* line 3"):
        read_catalogue(shop / "e.json")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_folder_of_pictures(shop, name):
    if name.endswith("csv"):
        write_csv(shop / name)
    elif name.endswith("jsonl"):
        write_jsonl(shop / name)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), shop / name)
    (shop / "notes.csv").write_text("metadata goes before other tables")
    assert_whole(read_catalogue(str(shop)))


@pytest.mark.parametrize("layout", ["struct", "bytes", "paths"])
def test_parquet(shop, layout):
    rows = embedded(shop, range(4))
    kind = None
    if layout == "bytes":
        rows, kind = [{**row, "image": row["image"]["bytes"]} for row in rows], pa.large_binary()
    if layout == "paths":
        rows = [{**row, "image": {"bytes": None, "path": row["image"]["path"]}} for row in rows]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert_whole(read_catalogue(write_parquet(shop / "a.parquet", rows, kind)))


def test_folder_of_shards_is_one_table_whatever_the_files_are_called(tmp_path, shop):
    write_parquet(tmp_path / "hub [v1]" / "test-00000-of-00001.parquet", embedded(shop, [0, 1]))
    write_parquet(tmp_path / "hub [v1]" / "train-00000-of-00001.parquet", embedded(shop, [2, 3]))
    intake = read_catalogue(tmp_path / "hub [v1]")
    assert intake.own_splits is None
    assert sorted(text for (text,) in intake.dataset["texts"]) == [row["text"] for row in ROWS]
    assert intake.dataset["source_row"][:] == [1, 2, 1, 2]


def test_a_rewritten_parquet_file_is_read_anew(tmp_path, shop):
    write_parquet(tmp_path / "a.parquet", embedded(shop, [0, 1]))
    assert len(read_catalogue(tmp_path / "a.parquet").dataset) == 2
    write_parquet(tmp_path / "a.parquet", embedded(shop, [1, 2, 3]))
    assert read_catalogue(tmp_path / "a.parquet").dataset["texts"][:] == [["Thing 1"], ["Thing 2"], ["Thing 3"]]


def test_embedded_lists_of_pictures_become_rows(tmp_path, shop):
    rows = embedded(shop, range(4))
    lists = [{"image": [rows[0]["image"], rows[1]["image"]], "text": "Two"}, {"image": [], "text": "No picture"}]
    lists.append({"image": [rows[2]["image"]], "text": "One"})
    intake = read_catalogue(write_parquet(tmp_path / "a.parquet", lists))
    assert intake.dataset["texts"][:] == [["Two"], ["Two"], ["One"]]
    assert [picture.getpixel((0, 0))[0] for picture in intake.dataset["image"]] == [0, 1, 2]
    assert len(set(intake.dataset["product"])) == 2
    assert [(fault.row, fault.reason) for fault in intake.quarantine] == [(2, NOT_NAMED)]


def test_embedded_pictures_stored_under_one_name_stay_apart(tmp_path, shop):
    """Exports name every picture image.png: that makes neither one product nor one id of them."""
    write_parquet(tmp_path / "a.parquet", embedded(shop, [0, 1, 1], name="image.png"))
    intake = read_catalogue(tmp_path / "a.parquet")
    assert len(intake.dataset) == len(set(intake.dataset["product"])) == len(set(intake.dataset["image_id"])) == 2


def test_embedded_faults_are_quarantined_and_no_path_is_followed(tmp_path, shop):
    rows = embedded(shop, range(4))
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:45]
    rows[2]["image"] = {"bytes": None, "path": str(shop / "2.png")}  # a file there is, but it was not embedded
    intake = read_catalogue(write_parquet(tmp_path / "a.parquet", rows))
    assert [(fault.row, fault.reason, fault.value) for fault in intake.quarantine] == [
        (2, UNREADABLE, "1.png"),
        (3, NOT_NAMED, str(shop / "2.png")),
    ]
    assert intake.dataset["texts"][:] == [["Thing 0"], ["Thing 3"]]
    assert [picture.getpixel((0, 0))[0] for picture in intake.dataset["image"]] == [0, 3]


def test_a_mapping_keeps_the_users_splits(shop):
    write_jsonl(shop / "a.jsonl", ROWS[:2])
    write_csv(shop / "b.csv", ROWS[2:])
    splits = load_catalogue({"train": shop / "a.jsonl", "val": [str(shop / "b*.csv")]}, test_size=0.5)
    assert {name: rows["texts"][:] for name, rows in splits.items()} == {
        "train": [["Thing 0"], ["Thing 1"]],
        "validation": [["Thing 2"], ["Thing 3"]],
    }


def test_products_in_two_splits_of_a_mapping_are_warned_of(shop, caplog):
    path = write_jsonl(shop / "a.jsonl")
    with caplog.at_level(logging.WARNING):
        splits = load_catalogue({"train": path, "test": path})
    assert len(splits["train"]) == len(splits["test"]) == 4
    assert "4 product(s) stand in more than one split" in caplog.text


def test_max_samples_is_per_split(shop):
    path = write_jsonl(shop / "a.jsonl")
    splits = load_catalogue({"train": path, "test": [path]}, max_samples=2)
    assert {name: rows["texts"][:] for name, rows in splits.items()} == {
        name: [["Thing 0"], ["Thing 1"]] for name in ("train", "test")
    }
    assert read_catalogue(path, max_samples=3).rows_read == 3
    with pytest.raises(ValueError, match="max_samples must be at least 1, got 0"):
        read_catalogue(path, max_samples=0)


def test_a_file_called_like_a_split_makes_no_split(shop, draw):
    """datasets' imagefolder turns a picture called toy_train.jpg into a split and loses every other row."""
    for name in ("toy_train.png", "test-kit.png", "validation/stamp.png"):
        draw(name, 99)
    rows = [{"file_name": name, "text": name} for name in ("toy_train.png", "test-kit.png", "validation/stamp.png")]
    write_jsonl(shop / "metadata.jsonl", ROWS + rows)
    intake = read_catalogue(shop)
    assert (len(intake.dataset), intake.own_splits) == (7, None)


def test_japanese_shift_jis_is_read_and_said(shop, caplog):
    path = write_csv(shop / "a.csv", [{"画像": "0.png", "商品名": "赤いぼうし"}], encoding="cp932")
    with caplog.at_level(logging.WARNING):
        assert read_catalogue(path).dataset["texts"][:] == [["赤いぼうし"]]
    assert "not UTF-8; it was read as Japanese" in caplog.text


def test_western_text_is_not_taken_for_japanese(shop):
    path = write_csv(shop / "a.csv", [{"image": "0.png", "text": "Chapeau d'été doublé"}], encoding="cp1252")
    with pytest.raises(ValueError, match=r"is not UTF-8: line 2 .*Save the file as UTF-8"):
        read_catalogue(path)


def test_ragged_and_broken_lines_are_quarantined_with_their_place(shop):
    (shop / "a.csv").write_text('file_name,text\n0.png,"Two\nlines"\n1.png,One,more\n\n2.png,Fine\n3.png\n')
    intake = read_catalogue(shop / "a.csv")
    assert intake.dataset["texts"][:] == [["Two\nlines"], ["Fine"]]
    assert intake.dataset["source_row"][:] == [1, 3]
    assert [(fault.row, fault.detail, fault.reason) for fault in intake.quarantine] == [
        (2, "line 4: 3 in place of 2", "row has another number of fields than the header"),
        (4, "line 7: 1 in place of 2", "row has another number of fields than the header"),
    ]
    assert intake.rows_read == 4

    lines = [json.dumps(ROWS[0]), "{broken", "[1]", json.dumps(ROWS[1])]
    (shop / "b.jsonl").write_text("\n".join(lines))
    intake = read_catalogue(shop / "b.jsonl")
    assert intake.dataset["source_row"][:] == [1, 4]
    assert [(fault.row, fault.reason) for fault in intake.quarantine] == [
        (2, "line is not JSON"),
        (3, "entry is not a JSON object"),
    ]


def test_a_row_with_a_stray_quotation_mark_is_left_out_and_no_other(shop):
    rows = ['0.png,"fine,', 'on two lines"', '1.png,"5" nails, iron"', "", '2.png,"open', "0.png,sound"]
    (shop / "a.csv").write_text("\n".join(["file_name,text", *rows, ""]))
    intake = read_catalogue(shop / "a.csv")
    assert [texts for own in intake.dataset["texts"] for texts in own] == ["fine,\non two lines", "sound"]
    assert [(fault.row, fault.reason, fault.detail.split(":")[0]) for fault in intake.quarantine] == [
        (2, sources.NO_CSV, "line 4"),
        (3, sources.NO_CSV, "line 6"),
    ]
    assert (intake.rows_read, intake.rows_used) == (4, 2)


def test_a_column_without_a_name_and_a_very_long_cell(shop, caplog):
    (shop / "a.csv").write_text(f"file_name,,text,\n0.png,x,{'long ' * 40_000},\n")
    intake = read_catalogue(shop / "a.csv")
    assert len(intake.dataset["texts"][0][0]) == 199_999
    assert "" not in intake.dataset.column_names
    assert [line for line in caplog.messages if "column" in line and "no name" in line] == [
        "'a.csv': column 2 has no name and is left out, with what 1 rows say in it. Name it in the first line."
    ]


def test_a_table_that_leads_out_of_its_folder(shop, tmp_path_factory):
    there = write_csv(tmp_path_factory.mktemp("elsewhere") / "metadata.csv")
    (shop / "metadata.csv").symlink_to(there)
    with pytest.raises(ValueError, match="leads out of its folder"):
        read_catalogue(shop)
    assert len(read_catalogue(shop / "metadata.csv", image_root=shop).dataset)


@pytest.mark.parametrize("text", ["ﾒﾝｽﾞ靴下", "赤革靴", "白色木製椅子 2脚"])
def test_cp932_without_full_width_kana(shop, text):
    path = write_csv(shop / "a.csv", [{"image": "0.png", "text": text}], encoding="cp932")
    assert read_catalogue(path).dataset["texts"][0] == [text]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Привет, красная шапка", "cp1251"),
        ("Привет, красная шапка", "koi8-r"),
        ("红色帽子，羊毛制成", "gbk"),
        ("“Größe” – Müller’s Äpfel…", "cp1252"),
    ],
)
def test_other_encodings_are_not_taken_for_japanese(shop, text, encoding):
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_catalogue(write_csv(shop / "a.csv", [{"image": "0.png", "text": text}], encoding=encoding))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"image,text,text\n", "names a column twice: 'text'"),
        (b'image,"text\n0.png,a\n', "in a line that is not CSV: 'image,"),
    ],
)
def test_unusable_headers(shop, content, words):
    (shop / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_catalogue(shop / "a.csv")


def test_a_cut_parquet_file_is_named(shop):
    path = write_parquet(shop / "a.parquet", embedded(shop, range(4)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet' is not a whole Parquet file"):
        read_catalogue(path)


def test_mixed_kinds_in_json_become_their_written_form(shop):
    path = write_jsonl(shop / "a.jsonl", [{**ROWS[0], "size": 12}, {**ROWS[1], "size": "12-B"}, ROWS[2]])
    assert read_catalogue(path).dataset["size"][:] == ["12", "12-B", None]


def test_json_of_texts_and_lists_of_texts(shop):
    path = write_jsonl(shop / "a.jsonl", [ROWS[0], {**ROWS[1], "text": ["One", "Two"]}])
    assert read_catalogue(path).dataset["texts"][:] == [["Thing 0"], ["One", "Two"]]


def test_half_an_emoji_does_not_stop_the_run(shop):
    lines = [json.dumps({**ROWS[0], "text": "Hat \ud83d"}), json.dumps({**ROWS[1], "text": "Hat 🎩"})]
    (shop / "a.jsonl").write_text("\n".join(lines))
    intake = read_catalogue(shop / "a.jsonl")
    assert intake.dataset["texts"][:] == [["Hat 🎩"]]
    assert [fault.row for fault in intake.quarantine] == [1]


def test_paths_that_lead_nowhere(shop):
    (shop / "a.ods").touch()
    (shop / "empty").mkdir()
    write_csv(shop / "a.csv")
    write_csv(shop / "b.csv")
    for path, error, words in [
        (shop / "a.ods", ValueError, r"'\.ods', allowed are \.csv, \.json, \.jsonl, \.parquet, \.tsv, \.xlsx"),
        (shop / "no.csv", FileNotFoundError, r"No catalogue at .*no\.csv"),
        ("no.csv", FileNotFoundError, "No catalogue at 'no.csv'"),
        (shop / "*.tsv", FileNotFoundError, "No file matches"),
        (shop / "empty", FileNotFoundError, "holds no table.*metadata.jsonl"),
        (shop, ValueError, r"several tables: a\.csv, b\.csv"),
        ({"holdout": shop / "a.csv"}, ValueError, "Unknown split 'holdout'.*train, validation, test"),
        ({}, ValueError, "mapping of splits is empty"),
    ]:
        with pytest.raises(error, match=words):
            read_catalogue(path)


def test_an_unreachable_hub_dataset_is_worded():
    with pytest.raises(FileNotFoundError, match=r"'acme/no-such-shop' is no file or folder here.*HF_HUB_OFFLINE"):
        read_catalogue("acme/no-such-shop")


def test_a_hub_dataset(shop, monkeypatch):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["hat", "cap"]),
        }
    )
    rows = datasets.Dataset.from_list(
        [{"image": str(shop / f"{n}.png"), "text": f"Thing {n}", "label": n % 2} for n in range(4)], features
    )
    loaded = datasets.DatasetDict({"train": rows.select([0, 1]), "test": rows.select([2, 3])})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    splits = load_catalogue("acme/shop")
    assert {name: part["texts"][:] for name, part in splits.items()} == {
        "train": [["Thing 0"], ["Thing 1"]],
        "test": [["Thing 2"], ["Thing 3"]],
    }
    assert splits["test"]["label"][:] == ["hat", "cap"]
    assert splits["test"][1]["image"].getpixel((0, 0)) == (3, 0, 7)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"train": rows}))
    assert read_catalogue("acme/shop").own_splits is None
