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
"""What happens to the rows: faults seeded into real files, and what a user then finds in the dataset."""

import ast
import csv
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import pytest
from PIL import Image

import fusionmatch.catalogue as room
from fusionmatch.catalogue import load_catalogue, pictures, read_catalogue
from fusionmatch.catalogue.rows import NO_TEXT


def write(folder, rows, name="shop.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def faults(intake):
    return [(fault.row, fault.field, fault.reason) for fault in intake.quarantine]


def test_seeded_faults_are_quarantined_and_the_rest_is_kept(tmp_path, draw):
    shop = tmp_path / "shop"
    draw("shop/good.png", 1)
    Image.effect_noise((64, 64), 50).save(shop / "whole.jpg")
    whole = (shop / "whole.jpg").read_bytes()
    (shop / "cut.jpg").write_bytes(whole[:-1000])  # the header is whole: only decoding to the end tells
    with Image.open(shop / "cut.jpg") as picture:
        assert picture.size == (64, 64)
    (shop / "page.jpg").write_text("<html>not found</html>")
    (shop / "empty.png").touch()
    secret = draw("secret.png", 3)
    (shop / "link.png").symlink_to(secret)
    names = ["good.png", "cut.jpg", "page.jpg", "empty.png", "gone.png", "../secret.png", str(secret), "link.png"]
    names += ["https://shop.example/a.jpg", "", "a\0b.png", "whole.jpg"]
    path = write(shop, [{"image": name, "text": "Something"} for name in names])
    intake = read_catalogue(path)
    assert intake.dataset["image_id"][:] == ["good.png", "whole.jpg"]
    assert intake.dataset["source_row"][:] == [1, 12]
    assert {fault.row: fault.reason for fault in intake.quarantine} == {
        2: pictures.UNREADABLE,
        3: pictures.UNREADABLE,
        4: pictures.UNREADABLE,
        5: pictures.MISSING,
        6: pictures.OUTSIDE,
        7: pictures.OUTSIDE,
        8: pictures.OUTSIDE,
        9: pictures.URL,
        10: pictures.NOT_NAMED,
        11: pictures.MISSING,
    }
    cut = intake.quarantine[0]
    assert (cut.source, cut.field, cut.value, cut.path) == ("shop.jsonl", "image", "cut.jpg", str(shop / "cut.jpg"))
    assert "truncated" in cut.detail.lower()
    assert "2 pictures of 2 products kept, 10 quarantined" in intake.summary()
    assert "Quarantined 3: picture cannot be read." in intake.summary()


def test_image_root_allows_pictures_elsewhere(tmp_path, draw):
    (tmp_path / "lists").mkdir()
    inside = draw("photos/a.png", 1)
    outside = draw("other/b.png", 2)
    names = ["a.png", str(inside), "../photos/a.png", str(outside)]
    path = write(tmp_path / "lists", [{"image": name, "text": f"Text {name}"} for name in names])
    intake = read_catalogue(path, image_root=tmp_path / "photos")
    assert intake.dataset["image_id"][:] == ["a.png"]
    assert len(intake.dataset[0]["texts"]) == 3
    assert faults(intake) == [(4, "image", pictures.OUTSIDE)]
    with pytest.raises(FileNotFoundError, match=r"image_root .* is not a folder"):
        read_catalogue(path, image_root=tmp_path / "nowhere")


def test_a_decompression_bomb_is_quarantined_without_a_warning(tmp_path, draw, monkeypatch):
    draw("a.png", 1)
    Image.new("1", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    path = write(tmp_path, [{"image": name, "text": "x"} for name in ("a.png", "large.png")])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        intake = read_catalogue(path)
    assert faults(intake) == [(2, "image", pictures.TOO_LARGE)]
    assert not seen


def test_placeholders_are_no_text(tmp_path, draw):
    draw("a.png")
    texts = ["Hat", "", "  ", "N/A", "nan", "None", "-", None]
    intake = read_catalogue(write(tmp_path, [{"image": "a.png", "text": text} for text in texts]))
    assert intake.dataset["texts"][:] == [["Hat"]]
    assert faults(intake) == [(row, "text", NO_TEXT) for row in range(2, 9)]


def test_empty_pieces_and_empty_captions(tmp_path, draw):
    for number in range(3):
        draw(f"{number}.png", number)
    rows = [("Hat", "n/a"), ("", "Warm"), ("", "-")]
    path = write(tmp_path, [{"image": f"{n}.png", "title": a, "description": b} for n, (a, b) in enumerate(rows)])
    intake = read_catalogue(path)
    assert intake.dataset["texts"][:] == [["Hat."], ["Warm."]]
    assert faults(intake) == [(3, "title + description", NO_TEXT)]

    rows = [["A hat", " ", "Red"], [], ["One"]]
    path = write(tmp_path, [{"image": f"{n}.png", "captions": captions} for n, captions in enumerate(rows)])
    intake = read_catalogue(path)
    assert intake.dataset["texts"][:] == [["A hat", "Red"], ["One"]]
    assert faults(intake) == [(1, "captions", NO_TEXT), (2, "captions", NO_TEXT)]


def test_several_pictures_a_row_of_which_one_is_broken(tmp_path, draw):
    for number, name in enumerate(["front.png", "back, left.png", "side.png"]):
        draw(f"images/{name}", number)
    (tmp_path / "images" / "side.png").write_text("broken")
    path = tmp_path / "shop.csv"
    path.write_text('image,text,additional_images\nimages/front.png,Hat,"images\\back, left.png | images/side.png"\n')
    intake = read_catalogue(path)
    assert intake.dataset["image_id"][:] == ["images/front.png", "images/back, left.png"]
    assert intake.dataset["texts"][:] == [["Hat"], ["Hat"]]
    assert set(intake.dataset["product"]) == {"images/front.png"}
    assert faults(intake) == [(1, "additional_images", pictures.UNREADABLE)]


@pytest.mark.parametrize("cell", [["0.png", "1.png"], "0.png;1.png", "0.png+1.png"])
def test_one_column_of_several_pictures(tmp_path, draw, cell):
    draw("0.png", 0)
    draw("1.png", 1)
    path = write(tmp_path, [{"images": cell, "text": "Hat"}])
    separator = "+" if "+" in cell else None
    assert read_catalogue(path, separator=separator).dataset["image_id"][:] == ["0.png", "1.png"]


def test_five_rows_a_picture_become_one_row_of_five_texts(tmp_path, draw):
    draw("a.png", 1)
    draw("b.png", 2)
    rows = [{"image": "a.png", "caption": f"View {n}"} for n in range(5)]
    rows += [{"image": "./a.png", "caption": "View 3"}, {"image": "b.png", "caption": "View 3"}]
    intake = read_catalogue(write(tmp_path, rows))
    assert intake.dataset["texts"][:] == [[f"View {n}" for n in range(5)], ["View 3"]]
    assert intake.dataset["product"][:] == ["a.png", "b.png"]


def test_products(tmp_path, draw):
    for number in range(5):
        draw(f"{number}.png", number)
    groups = [7, 7, None, "n/a", 8]
    rows = [{"image": f"{n}.png", "text": f"T{n}", "product_id": group} for n, group in enumerate(groups)]
    intake = read_catalogue(write(tmp_path, rows))
    assert intake.dataset["product"][:] == ["7", "7", "2.png", "3.png", "8"]
    rows = [{"image": f"{n}.png", "text": f"T{n}", "image_id": f"id{n // 2}"} for n in range(5)]
    intake = read_catalogue(write(tmp_path, rows))
    assert intake.dataset["product"][:] == ["id0", "id0", "id1", "id1", "id2"]


def test_products_that_share_a_picture_fall_together(tmp_path, draw):
    for number in range(60):
        draw(f"{number}.png", number)
        (tmp_path / f"copy-{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes())
    rows = [{"image": f"{n}.png", "text": "x", "product": f"P{n}"} for n in range(60)]
    rows += [{"image": f"copy-{n}.png", "text": "y", "product": f"Q{n}"} for n in range(60)]
    splits = load_catalogue(write(tmp_path, rows), validation_size=0.2, test_size=0.3)
    for part in splits.values():
        assert sorted(name[1:] for name in part["product"] if name[0] == "P") == sorted(
            name[1:] for name in part["product"] if name[0] == "Q"
        )
    assert sum(len(part) for part in splits.values()) == 120


def test_other_columns_are_kept_and_colliding_names_get_a_suffix(tmp_path, draw):
    draw("a.png")
    row = {"image": "a.png", "text": "Hat", "price": 12.5, "image_id": "X1", "tags": ["x"]}
    row.update(texts=3, texts_source="own")
    dataset = read_catalogue(write(tmp_path, [row]), caption_column="text").dataset
    own = ["image", "texts", "product", "image_id", "source_row", "picture_group"]
    assert dataset.column_names[:6] == own
    kept = {name: dataset[0][name] for name in dataset.column_names[6:]}
    assert kept == {"price": 12.5, "image_id_source": "X1", "texts_source_source": 3, "texts_source": "own"}


def test_sources_of_different_columns_become_one_schema(tmp_path, draw):
    draw("a.png", 1)
    draw("b.png", 2)
    draw("c.png", 3)
    first = write(tmp_path, [{"image": "a.png", "text": "A", "size": 1}], "a.jsonl")
    second = write(tmp_path, [{"image": "b.png", "text": "B", "size": "M"}], "b.jsonl")
    third = write(tmp_path, [{"image": "c.png", "text": "C", "weight": 2.5}], "c.jsonl")
    dataset = read_catalogue([first, second, third]).dataset
    assert dataset["size"][:] == ["1", "M", None]
    assert dataset["weight"][:] == [None, None, 2.5]
    assert dataset["image"][2].getpixel((0, 0)) == (3, 0, 7)


def test_the_split_column_is_honoured(tmp_path, draw):
    for number in range(6):
        draw(f"{number}.png", number)
    names = ["train", "Train", "val", "dev", "eval", "test"]
    rows = [{"image": f"{n}.png", "text": "x", "part": name} for n, name in enumerate(names)]
    splits = load_catalogue(write(tmp_path, rows), split_column="part")
    assert {name: part["image_id"][:] for name, part in splits.items()} == {
        "train": ["0.png", "1.png"],
        "validation": ["2.png", "3.png"],
        "test": ["4.png", "5.png"],
    }
    rows[3]["part"] = "later"
    with pytest.raises(ValueError, match=r"'part' holds 'later' \(first in shop.jsonl, row 4\); allowed are train"):
        load_catalogue(write(tmp_path, rows), split_column="part")


def test_a_given_split_that_loses_every_row_is_refused_not_left_out(tmp_path, draw):
    for number in range(2):
        draw(f"{number}.png", number)
    good = write(tmp_path, [{"image": f"{n}.png", "text": "x"} for n in range(2)], "good.jsonl")
    gone = write(tmp_path, [{"image": f"gone-{n}.png", "text": "x"} for n in range(2)], "gone.jsonl")
    with pytest.raises(ValueError, match=r"The test split holds 0 product\(s\)"):
        load_catalogue({"train": good, "test": gone})


def test_a_picture_that_datasets_would_stumble_over_later_is_found_now(tmp_path, draw):
    draw("a.png", 1)
    Image.new("RGB", (8, 6)).save(tmp_path / "exif.png", exif=b"Exif\0\0not an EXIF block")
    path = write(tmp_path, [{"image": name, "text": "x"} for name in ("a.png", "exif.png")])
    with pytest.raises(SyntaxError):
        datasets.Image().decode_example({"path": str(tmp_path / "exif.png"), "bytes": None})
    assert faults(read_catalogue(path)) == [(2, "image", pictures.UNREADABLE)]


def test_quarantine_files(tmp_path, draw):
    for number in range(3):
        draw(f"{number}.png", number)
    rows = [{"image": f"{n}.png", "text": f"T{n}"} for n in range(4)] + [{"image": "0.png", "text": 'ない, "x"' * 99}]
    rows[3]["image"] = "帽子.png"
    rows[4]["image"] = "gone.png"
    path = write(tmp_path, rows)
    for name in ("out/q.jsonl", "out/q.csv"):
        load_catalogue(path, quarantine_file=tmp_path / name, validation_size=0, test_size=0)
    lines = [json.loads(line) for line in (tmp_path / "out/q.jsonl").read_text(encoding="utf-8").splitlines()]
    with (tmp_path / "out/q.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["row"], line["value"]) for line in lines] == [(4, "帽子.png"), (5, "gone.png")]
    assert [{key: value or None for key, value in row.items()} for row in table] == [
        {**line, "row": str(line["row"])} for line in lines
    ]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["q.csv", "q.jsonl"]
    intake = read_catalogue(write(tmp_path, rows[:3]))
    assert intake.write_quarantine(tmp_path / "out/q.jsonl").read_text() == ""
    with pytest.raises(ValueError, match=r"\.csv, \.jsonl, got 'q\.txt'"):
        load_catalogue(tmp_path / "never read.csv", quarantine_file="q.txt")


def test_an_interrupted_quarantine_leaves_the_old_file(tmp_path):
    def broken():
        yield room.QuarantinedRow("a", 1, "x")
        raise KeyboardInterrupt

    (tmp_path / "q.jsonl").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        room.quarantine.write_quarantine(broken(), tmp_path / "q.jsonl")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("q.jsonl", "old")]


def test_errors_say_what_to_do(tmp_path, draw):
    for number in range(3):
        draw(f"{number}.png", number)
    path = write(tmp_path, [{"image": f"{n}.png", "text": "x"} for n in range(3)])
    with pytest.raises(ValueError, match=r"The \w+ split holds [01] product\(s\) of 3.*Raise its size"):
        load_catalogue(path)
    with pytest.raises(ValueError, match="test_size must be a share"):
        load_catalogue(path, test_size=20)
    with pytest.raises(ValueError, match=r"^b\.jsonl: image_column: there is no column 'image'"):
        read_catalogue([path, write(tmp_path, [{"text": "x"}], "b.jsonl")])
    rows = [{"image": "gone.png", "text": "x"}] * 3 + [{"image": "0.png", "text": ""}]
    with pytest.raises(ValueError, match=r"4 quarantined \(3 times: picture file is missing; 1 times: text is empty"):
        read_catalogue(write(tmp_path, rows, "c.jsonl"))


def test_what_was_quarantined_is_warned_of(tmp_path, draw, caplog):
    for number in range(2):
        draw(f"{number}.png", number)
    path = write(tmp_path, [{"image": f"{n}.png", "text": "x"} for n in range(3)])
    with caplog.at_level(logging.WARNING):
        load_catalogue(path, validation_size=0, test_size=0)
    assert "1 entries of the catalogue were quarantined (1 picture file is missing)" in caplog.text


def test_the_same_catalogue_elsewhere_gives_the_same_rows_and_splits(tmp_path, draw):
    parts = []
    for place in ("here", "there"):
        folder = tmp_path / place
        for number in range(40):
            draw(f"{place}/images/{number}.png", number)
        path = write(folder, [{"image": f"images/{n}.png", "text": f"T{n}"} for n in range(40)])
        splits = load_catalogue(path, seed=3)
        parts.append({name: part.remove_columns("image").to_dict() for name, part in splits.items()})
    assert parts[0] == parts[1]


def test_the_dataset_survives_saving_and_loading(tmp_path, draw):
    for number in range(4):
        draw(f"{number}.png", number)
    path = write(tmp_path, [{"image": f"{n}.png", "text": f"T{n}"} for n in range(4)])
    load_catalogue(path, validation_size=0, test_size=0).save_to_disk(tmp_path / "saved")
    for number in range(4):
        (tmp_path / f"{number}.png").unlink()
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))["train"]
    assert loaded["texts"][:] == [["T0"], ["T1"], ["T2"], ["T3"]]
    assert loaded[3]["image"].getpixel((0, 0)) == (3, 0, 7)


LOADED_WITHOUT_MODELS = """
import sys, types
package = types.ModuleType("fusionmatch")  # the face itself loads the model, which this room must not need
package.__path__ = [sys.argv[1]]
sys.modules["fusionmatch"] = package
from fusionmatch.catalogue import load_catalogue
print(load_catalogue(sys.argv[2], validation_size=0, test_size=0)["train"].num_rows)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


def test_loading_needs_neither_torch_nor_transformers(tmp_path, draw):
    for number in range(2):
        draw(f"{number}.png", number)
    path = tmp_path / "shop.csv"
    path.write_text("image,text\n0.png,A\n1.png,B\n")
    package = Path(room.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED_WITHOUT_MODELS, str(package), str(path)],
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout.split("\n")[:2]) == (0, ["2", "[]"]), ran.stderr


def test_the_room_imports_nothing_else_of_ours():
    for file in Path(room.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, f"{file.name} reaches out of the room"
                names = [node.module or ""] if node.level == 0 else []
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "transformers", "fusionmatch"}, file.name
