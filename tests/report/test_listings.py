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

import pytest

from fusionmatch.catalogue import read_catalogue
from fusionmatch.catalogue.sample_shop import write_sample_shop
from fusionmatch.evaluation.mismatches import Listing
from fusionmatch.report.listings import write_listings


@pytest.fixture(scope="module")
def intake(tmp_path_factory):
    return read_catalogue(write_sample_shop(tmp_path_factory.mktemp("shop"), num_products=24))


def test_the_page_shows_the_worst_and_the_table_all(intake, tmp_path):
    listings = [Listing(3, 0.9, [7, 1], 7), Listing(7, 0.8, [3], 3), Listing(5, 0.6, [], None)]
    page, table = write_listings(tmp_path / "out", listings, intake, "shop <1>", most=2)
    text = page.read_text(encoding="utf-8")
    assert "3 of " in text
    assert "shop &lt;1&gt;" in text
    assert text.count('class="query listing"') == 2
    assert "The first 2 are shown; all are in listings.csv." in text
    rows, texts = list(intake.dataset["source_row"]), list(intake.dataset["texts"])
    assert f"perhaps swapped with products.csv, row {rows[7]}" in text
    assert texts[7][0] in text
    assert "http" not in text
    with table.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["row"]) for line in lines] == [rows[3], rows[7], rows[5]]
    ids = list(intake.dataset["image_id"])
    assert lines[0]["swapped_with"] == lines[0]["fits_image_id"] == ids[7]
    assert lines[0]["fits"] == texts[7][0]
    assert lines[2]["fits"] == lines[2]["swapped_with"] == ""


def test_nothing_to_show_and_japanese(intake, tmp_path):
    page, table = write_listings(tmp_path, [], intake, "shop")
    assert "No listing stands out." in page.read_text(encoding="utf-8")
    calibrated, _ = write_listings(tmp_path / "calibrated", [], intake, "shop", matched=0.5)
    assert "for pairs of which 50% belong together" in calibrated.read_text(encoding="utf-8")
    assert len(table.read_text(encoding="utf-8-sig").splitlines()) == 1
    page, _ = write_listings(tmp_path, [Listing(3, 0.9, [7], None)], intake, "shop", language="ja")
    assert "ほかのテキストの90%がより合う" in page.read_text(encoding="utf-8")
