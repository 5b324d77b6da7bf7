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
"""Long tables: read by the chunk and kept on disk, they say the same as short ones in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fusionmatch.catalogue import examine, read_catalogue, tables
from fusionmatch.catalogue.tables import Places, codes_of, count_by_appearance, keep


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(1, 99), max_size=5)), max_size=4), st.data())
def test_places_are_a_list_of_pairs(parts, data):
    places, pairs = Places(parts), [(name, row) for name, rows in parts for row in rows]
    assert list(places) == pairs == [places[i] for i in range(len(pairs))]
    assert places.numbers().tolist() == [row for _, row in pairs]
    start, stop = data.draw(st.integers(0, len(pairs))), data.draw(st.integers(0, len(pairs)))
    assert list(places[start:stop]) == pairs[start:stop]
    if pairs:
        assert places[-1] == pairs[-1]
    with pytest.raises(IndexError, match="row"):
        places[len(pairs)]


def test_tables_go_to_disk_when_they_are_long_and_schemas_are_kept_apart(monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 5)
    numbers = [pa.table({"a": [1, 2]}), pa.table({"a": [3]})]
    assert [type(part) for part in keep(numbers)] == [datasets.table.InMemoryTable] * 2
    parts = keep([*numbers, pa.table({"a": ["x", "y", "z"]}), pa.table({"a": [4]})])
    assert [part["a"].to_pylist() for part in parts] == [[1, 2, 3], ["x", "y", "z"], [4]]
    # Their place on the disk is free as soon as they are, unless others may ask for them by name.
    assert [Path(part.path).is_file() for part in parts] == [os.name == "nt"] * 3
    assert Path(keep([pa.table({"a": range(6)})], lasting=True)[0].path).is_file()
    assert keep([]) == []


def test_no_room_for_long_tables_is_said(tmp_path, draw, monkeypatch):
    draw("0.png")
    path = tmp_path / "shop.csv"
    path.write_text("image,title\n" + "0.png,hat\n" * 9)
    monkeypatch.setattr(tables, "CHUNK", 5)
    monkeypatch.setattr(tables, "get_temporary_cache_files_directory", lambda: str(tmp_path / "gone"))
    with pytest.raises(tables.KeepError, match=r"more than 5 rows .*gone.*TMPDIR"):
        read_catalogue(path)


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 2**40))))
def test_combinations_are_numbered_as_they_appear(rows):
    known: dict = {}
    expected = [known.setdefault(row, len(known)) for row in rows]
    columns = np.array(rows, np.int64).reshape(-1, 2).T
    assert count_by_appearance(*columns).tolist() == expected


def test_cells_are_numbered_across_chunks():
    codes, cells = codes_of(pa.chunked_array([["b", "a"], ["a", None, "c"]]))
    assert (codes.tolist(), cells.to_pylist()) == ([0, 1, 1, -1, 2], ["b", "a", "c"])
    codes, cells = codes_of(pa.chunked_array([], pa.string()))
    assert (codes.tolist(), cells.to_pylist()) == ([], [])


def test_a_catalogue_in_chunks_reads_as_it_does_at_once(tmp_path, draw, monkeypatch):
    for number in range(9):
        draw(f"{number}.png", number)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [
        {
            "image": [f"{i % 11}.png", "bad.png"][: 1 + i % 2],
            "product_id": f"p{i % 7}" if i % 5 else None,
            "captions": [f"text {i % 13}", "red hat", ""][: i % 4] if i % 6 else f"alone {i}",
            "price": i if i < 20 else f"{i}-B",  # another kind in a later chunk
            "sku": (i % 29) * (1.0 if i < 3 else 1) if i < 25 else f"{i % 29}",
            "size": {"a": i} if i < 9 else {"b": 1} if i < 30 else [i] if i < 40 else None if i < 50 else 2.5,
            "split": ("train", "dev", "test")[i % 3],
        }
        | ({"late": {"a": i}, "note": "here"} if i > 25 else {})
        for i in range(60)
    ]
    path = tmp_path / "shop.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{cut\n")

    def read():
        intake = read_catalogue(path, split_column="split")
        return intake, examine(intake, lambda texts: [len(text.split()) for text in texts], 1)

    (whole, found), length = read(), tables.CHUNK
    monkeypatch.setattr(tables, "CHUNK", 7)
    cut, found_in_chunks = read()
    assert length > len(rows)
    assert cut.dataset.cache_files
    assert not whole.dataset.cache_files
    assert cut.dataset.features == whole.dataset.features
    assert cut.dataset.data.to_pylist() == whole.dataset.data.to_pylist()
    assert cut.dataset.features["price"].dtype == "string"
    assert cut.quarantine == whole.quarantine
    assert found_in_chunks == found != []
    assert (cut.files, cut.own_splits, cut.summary()) == (whole.files, whole.own_splits, whole.summary())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_hardly_grows_with_the_rows(tmp_path):
    """120,000 rows more took 180 MB more when each was an object; 0.5 KB each are arrays and Arrow's."""
    code = """
import re, sys, threading, time
from fusionmatch.catalogue import read_catalogue
peaks = []
def watch():
    while True:
        peaks.append(int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
for path in sys.argv[1:]:
    peaks.clear()
    print(len(read_catalogue(path).dataset), max(peaks))
"""
    Image.effect_noise((48, 48), 50).save(tmp_path / "0.png")
    paths = []
    for rows in (60_000, 180_000):
        paths.append(tmp_path / f"{rows}.csv")
        with paths[-1].open("w") as file:
            file.write("image,title,description,product_id\n")
            words = "a warm red woollen hat for the winter made by hand in a small workshop"
            file.writelines(f"0.png,hat {i},{words} {i},p{i}\n" for i in range(rows))
    run = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (few, before), (many, after) = (line.split() for line in run.stdout.splitlines())
    assert (int(few), int(many)) == (60_000, 180_000)
    assert float(after) - float(before) < 130
