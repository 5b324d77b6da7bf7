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
"""Faults seeded into a shop at known rates are found, in each format, and nothing good is lost."""

import csv
import json

import openpyxl
import pandas
import pytest

from fusionmatch.catalogue import doctor, examine, read_catalogue
from fusionmatch.catalogue.sample_shop import write_sample_shop


RATES = {
    "truncated_image": 0.01,
    "not_an_image": 0.01,
    "missing_image": 0.02,
    "no_text": 0.01,
    "blank_text": 0.01,
    "duplicate_image": 0.05,
    "reencoded_image": 0.05,
    "long_text": 0.01,
    "swapped_text": 0.03,
}
UNUSABLE = {"truncated_image", "not_an_image", "missing_image", "no_text", "blank_text"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_sample_shop(tmp_path_factory.mktemp("shop"), num_products=200, image_size=96, fault_rates=RATES)


def in_another_format(shop, name):
    path = shop.parent / name
    rows = list(csv.reader(shop.read_text(encoding="utf-8").splitlines()))
    records = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records), encoding="utf-8")
    elif path.suffix == ".parquet":
        pandas.DataFrame(records).to_parquet(path)
    elif path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(path)
    else:
        encoding = "cp932" if "sjis" in name else "utf-16" if "utf16" in name else "utf-8-sig"
        with path.open("w", encoding=encoding, newline="") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return path


@pytest.mark.parametrize("name", ["bom.csv", "sjis.csv", "utf16.tsv", "shop.jsonl", "shop.parquet", "shop.xlsx"])
def test_every_seeded_fault_is_found_and_nothing_good_is_lost(shop, name):
    intake = read_catalogue(in_another_format(shop, name))
    faults = {fault["row"]: fault for fault in json.loads((shop.parent / "faults.json").read_text(encoding="utf-8"))}
    assert len(faults) == 40
    unusable = {row for row, fault in faults.items() if fault["kind"] in UNUSABLE}
    assert {fault.row for fault in intake.quarantine} == unusable
    assert set(intake.dataset["source_row"]) == set(range(1, 201)) - unusable

    assert doctor.SHARED_PICTURE in {note.reason for note in examine(intake)}
    columns = (intake.dataset[name] for name in ("source_row", "product", "picture_group"))
    groups = {"row": {}, "product": {}}
    for row, product, group in zip(*columns, strict=True):
        groups["row"][row] = group
        groups["product"].setdefault(product, set()).add(group)
    for kind, share in (("duplicate_image", 1.0), ("reencoded_image", 0.9)):
        copies = [fault for fault in faults.values() if fault["kind"] == kind]
        found = [groups["row"][fault["row"]] in groups["product"][fault["same_as"]] for fault in copies]
        assert len(found) == 10 and sum(found) >= share * len(found)
    splits = intake.split()
    for column in ("product", "picture_group"):
        names = [set(split[column]) for split in splits.values()]
        assert sum(map(len, names)) == len(set.union(*names))


def test_swapped_texts_go_round(shop):
    faults = json.loads((shop.parent / "faults.json").read_text(encoding="utf-8"))
    swapped = [fault for fault in faults if fault["kind"] == "swapped_text"]
    assert len(swapped) == 6
    assert {fault["product_id"] for fault in swapped} == {fault["same_as"] for fault in swapped}
    assert all(fault["product_id"] != fault["same_as"] for fault in swapped)
