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
import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from fusionmatch.catalogue import read_catalogue
from fusionmatch.catalogue.sample_shop import FAULT_KINDS, PATTERNS, write_sample_shop
from fusionmatch.catalogue.sample_shop_drawing import COLORS, Look, draw_product
from fusionmatch.catalogue.sample_shop_shapes import SHAPES


def read_rows(table):
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def digest(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def sound_shop(tmp_path_factory):
    return write_sample_shop(tmp_path_factory.mktemp("sound"), num_products=33, image_size=40, faults=False)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_sample_shop(tmp_path_factory.mktemp("shop"), num_products=33, image_size=40)


def test_every_picture_of_a_sound_shop_opens_at_the_size_asked_for(sound_shop):
    rows = read_rows(sound_shop)
    pictures = [[row["image"], *filter(None, row["additional_images"].split("|"))] for row in rows]
    names = [name for product in pictures for name in product]
    assert len(rows) == 33
    assert Counter(map(len, pictures)) == {1: 22, 2: 7, 3: 4}
    for name in names:
        with Image.open(sound_shop.parent / name) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 40))
    assert len(set(digest(sound_shop.parent / "images").values())) == len(names)
    assert json.loads((sound_shop.parent / "faults.json").read_text()) == []


def test_texts_name_one_product_in_both_languages(sound_shop):
    rows = read_rows(sound_shop)
    assert len({row["product_id"] for row in rows}) == len({row["sku"] for row in rows}) == 33
    assert len({(row["sku"][:3], row["color"], row["pattern"], row["material"]) for row in rows}) == 33
    # 33 products are two of each of the 16 kinds, and one more.
    assert sorted(Counter(row["sku"][:3] for row in rows).values()) == [2] * 15 + [3]
    for row in rows:
        for field in ("title", "description"):
            text = row[field].lower()
            assert row["color"] in text
            assert row["material"] in text
            assert "{" not in text + row[f"{field}_ja"]
            assert not row[f"{field}_ja"].isascii()
        assert row["pattern"] in row["title"].lower()
        assert float(row["price"]) > 0
        # One word each for colour and material: never the wrong one of its kind.
        assert not any(word in row["description"].lower().split() for word in set(COLORS) - {row["color"]})


def test_the_faults_are_those_listed(shop):
    rows = read_rows(shop)
    faults = {fault["kind"]: fault for fault in json.loads((shop.parent / "faults.json").read_text())}
    assert set(faults) == set(FAULT_KINDS)
    row = {kind: rows[fault["row"] - 1] for kind, fault in faults.items()}
    assert all(row[kind]["product_id"] == fault["product_id"] for kind, fault in faults.items())
    assert len({fault["row"] for fault in faults.values()}) == len(FAULT_KINDS)
    picture = {kind: shop.parent / row[kind]["image"] for kind in row}

    with pytest.raises(OSError, match="truncated"), Image.open(picture["truncated_image"]) as image:
        image.load()
    assert picture["empty_image"].read_bytes() == b""
    assert not picture["missing_image"].exists()
    with pytest.raises(UnidentifiedImageError):
        Image.open(picture["not_an_image"])
    assert row["no_text"]["title"] == row["no_text"]["description"] == row["no_text"]["title_ja"] == ""
    blank = row["blank_text"]["title"] + row["blank_text"]["description"]
    assert blank
    assert not blank.strip()
    assert len(row["long_text"]["description"].split()) > 600
    original = next(one for one in rows if one["product_id"] == faults["duplicate_image"]["same_as"])
    assert original is not row["duplicate_image"]
    assert (shop.parent / original["image"]).read_bytes() == picture["duplicate_image"].read_bytes()


def test_the_intake_guesses_the_columns_and_finds_the_faults(shop):
    faults = {fault["kind"]: fault for fault in json.loads((shop.parent / "faults.json").read_text())}
    intake = read_catalogue(shop)
    columns = intake.columns
    assert (columns.image, columns.additional_images, columns.group) == ("image", "additional_images", "product_id")
    assert columns.texts == ("title", "description")
    unusable = set(FAULT_KINDS) - {"long_text", "duplicate_image"}
    assert {fault.row for fault in intake.quarantine} == {faults[kind]["row"] for kind in unusable}
    assert len(set(intake.dataset["product"])) == 33 - len(unusable)


def test_same_seed_gives_the_same_bytes_in_two_processes_and_another_seed_another_shop(tmp_path):
    code = (
        "import sys; from fusionmatch.catalogue.sample_shop import write_sample_shop\n"
        "write_sample_shop(sys.argv[1], num_products=16, image_size=32, seed=int(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "one"), "7"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "1"},
        check=True,
        capture_output=True,
    )
    write_sample_shop(tmp_path / "two", num_products=16, image_size=32, seed=7)
    write_sample_shop(tmp_path / "other", num_products=16, image_size=32, seed=8)
    one, other = digest(tmp_path / "one"), digest(tmp_path / "other")
    assert one == digest(tmp_path / "two")
    shared = [name for name in one if name.endswith(".jpg") and one[name] == other.get(name)]
    # The empty file and the one with a sentence in it are the same in every shop.
    assert len(shared) <= 2
    assert one["products.csv"] != other["products.csv"]


def test_missing_picture_stays_missing_when_a_shop_is_written_again(shop):
    before = digest(shop.parent)
    write_sample_shop(shop.parent, num_products=33, image_size=40)
    assert digest(shop.parent) == before


@pytest.mark.parametrize("color", COLORS)
def test_plain_products_show_the_colour_of_their_text(color):
    image = draw_product(Look("cushion", color, "plain", "cotton"), "front", 64, np.random.default_rng(0))
    seen = np.asarray(image, dtype=float)[22:42, 22:42].mean(axis=(0, 1))
    distance = {name: np.linalg.norm(seen - rgb) for name, rgb in COLORS.items()}
    assert min(distance, key=distance.get) == color


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_stands_whole_inside_the_picture(kind):
    for seed in range(4):
        view = ("front", "turned")[seed % 2]
        look = Look(kind, "red", "plain", "cotton", stretch=(1.05, 1.04))
        image = draw_product(look, view, 64, np.random.default_rng(seed))
        pixels = np.asarray(image, dtype=float)
        red = pixels[..., 0] - pixels[..., 1] > 45
        assert red.mean() > 0.02
        assert not (red[0].any() or red[-1].any() or red[:, 0].any() or red[:, -1].any())


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "plain"])
def test_patterns_show_and_differ(pattern):
    def draw(name):
        look = Look("cushion", "blue", name, "cotton")
        return np.asarray(draw_product(look, "front", 96, np.random.default_rng(1)), dtype=float)[30:66, 30:66]

    shown = draw(pattern)
    for other in PATTERNS:
        if other != pattern:
            assert np.abs(shown - draw(other)).mean() > 10


def test_materials_show_in_a_close_up():
    looks = [Look("cushion", "green", "plain", material) for material in ("velvet", "linen", "cotton", "wool")]
    roughness = [
        np.diff(np.asarray(draw_product(look, "detail", 96, np.random.default_rng(2)).convert("L"), float)).std()
        for look in looks
    ]
    velvet, linen, cotton, wool = roughness
    assert wool > linen > max(velvet, cotton)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_products": 15}, "15; ask for at least 16, or `faults=False`"),
        ({"num_products": 0, "faults": False}, "0; ask for at least 1"),
        ({"num_products": 2305}, "only 2304 different products"),
        ({"seed": -1}, "0 or more"),
        ({"image_size": 16}, "below 32 pixels"),
        ({"fault_rates": {"torn_image": 0.1}}, "truncated_image.*torn_image"),
        ({"fault_rates": {"no_text": 0.4, "blank_text": 0.4}}, "together at most 0.6"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_sample_shop(tmp_path / "shop", **arguments)
    assert not (tmp_path / "shop").exists()
