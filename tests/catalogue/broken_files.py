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
"""Catalogues that are broken in every way that files break: the cases of `benchmarks/fuzz_intake.py`."""

import io
import json
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from .broken_pictures import PICTURE_KINDS, SOUND, Case, changed_bytes, numbered, shop_of, write_bytes, zipped


def cases(number: int, start: int = 0) -> list[Case]:
    """So many cases, the same ones each time, as evenly from all kinds as these go."""
    chance = random.Random(start)
    sources = [kind(chance) for kind in KINDS]
    found: list[Case] = []
    while len(found) < number:
        for source in sources:
            found += islice(source, 1)
    return found[:number]


# Tables as text.

_ODD_CELLS = [
    "",
    '"',
    '""',
    '"open',
    "a\0b",
    "x" * 200_000,
    "'",
    "=1+1",
    "\ufeff",
    "\x1a",
    "é",
    "帽子",
    "NaN",
    "\r",
    ";",
]


def _csv(chance: random.Random, number: int) -> tuple[str, Callable[[Path], Path]]:
    header = chance.choice(["image,text", "image,text,product", "image;text", "\ufeffimage,text", '"image","text"'])
    lines = [header, "good.png,Thing"]
    for _ in range(chance.randrange(1, 12)):
        cells = [
            chance.choice(["good.png", "Thing", chance.choice(_ODD_CELLS)])
            for _ in range(chance.choice([2] * 5 + [0, 1, 3]))
        ]
        lines.append(",".join(cells))
    wide = ",".join(f"c{column}" for column in range(3_000))
    special = {
        0: (b"", "empty"),
        1: (b"\0" * 1000, "zeros"),
        2: (b"\xff\xfe", "only a byte order mark"),
        3: (b"\xff\xfei\0m", "half of UTF-16"),
        4: (b"\xff\xfe" + b"\xd8" * 999, "lone halves of UTF-16"),
        5: (b"image,text\n" + b"good.png," + b"x" * 30_000_000, "a cell of 30 MB"),
        6: (f"image,text,{wide}\ngood.png,Thing{',x' * 3_000}\n".encode(), "3,002 columns"),
        7: (b"image,text\n" + b"good.png\n" * 50_000, "50,000 ragged rows"),
        8: (b"image,text\n" + b'"' * 100_001, "100,001 quotation marks"),
        9: (b"\n\n\n\n", "only line breaks"),
        10: (b"image,text\r\rgood.png,Thing\r", "carriage returns alone"),
        11: (b",\ngood.png,Thing", "columns without names"),
        12: (b"image,text\ngood.png,caf\xe9\ngood.png,\xe5\xb8\xbd\n", "two encodings"),
        13: (b"image,text\ngood.png,\xef\xbf\xbe\xf4\x90\x80\x80", "code points that are none"),
        14: (SOUND["PNG"], "a picture"),
        15: (b"image,text\n" + b",\n" * 200_000, "200,000 empty rows"),
    }
    data, name = special.get(number, ("\n".join(lines).encode(chance.choice(["utf-8", "utf-16"])), "odd cells"))
    if number >= len(special) and chance.random() < 0.3:
        data, name = changed_bytes(chance, data), "odd cells, changed bytes"
    suffix = chance.choice([".csv", ".csv", ".tsv"])
    return name, lambda shop: write_bytes(shop, f"shop{suffix}", data)


_ODD_VALUES = [
    "NaN", "-Infinity", "1e999", "1" * 5_000, "-" + "9" * 30, "null", "true", '"\\ud83d"', '"\\u0000"', "[]", "{}",
    '{"bytes": "x", "path": "../secret.png"}', '["good.png", 3, null, {"a": 1}]', "[[[]]]", '""', '"good.png"',
    "[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "[" * 900 + "]" * 900, "'x'",
    '{"a": 1, "a": [2]}', '"' + "x" * 300_000 + '"', "1.7976931348623157e308", "18446744073709551616", "\x00", "0x1",
    "[1, 2]", "1.5", "",
]  # fmt: skip


def _json(chance: random.Random, number: int) -> tuple[str, Callable[[Path], Path]]:
    value = _ODD_VALUES[number % len(_ODD_VALUES)]
    odd = [value] * 2 if number < len(_ODD_VALUES) else [chance.choice(_ODD_VALUES) for _ in range(2)]
    key = ["more", "image", "text", "product", "captions", "split"][number // len(_ODD_VALUES) % 6]
    lines = [
        '{"image": "good.png", "text": "Thing"}',
        f'{{"image": "good.png", "text": "Thing", "{key}": {odd[0]}}}',
        f'{{"image": "good.png", "image": "../secret.png", "text": "Twice", "{key}": {odd[1]}}}',
        chance.choice(["[1]", "null", odd[0], "{", "", '{"": 1}']),
    ]
    text = "\n".join(lines)
    suffix = chance.choice([".jsonl", ".jsonl", ".json"])
    if suffix == ".json" and chance.random() < 0.7:
        text = f"[{','.join(lines[: chance.choice([2, 3, 4])])}]"
    return f"{key} = {value[:20]!r}", lambda shop: write_bytes(shop, f"shop{suffix}", text.encode())


# Tables in binary formats.


def _parquet_tables(picture: bytes) -> dict[str, dict[str, Any]]:
    rows = ["good.png"] * 3
    texts = ["Thing 0", "Thing 1", "Thing 2"]
    stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    embedded = [{"bytes": picture, "path": "a.png"}, {"bytes": None, "path": "../secret.png"}, None]
    return {
        "numbers as pictures": {"image": [1, 2, 3], "text": texts},
        "numbers as texts": {"image": rows, "text": [1.5, None, 3.0]},
        "booleans": {"image": [True, False, None], "text": [True, False, None]},
        "times": {"image": pa.array([1, 2, 3], pa.timestamp("us", "UTC")), "text": texts},
        "maps": {"image": pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())), "text": texts},
        "structs": {"image": [{"a": 1}] * 3, "text": [{"b": "x"}] * 3},
        "lists of lists": {"image": [[["good.png"]]] * 3, "text": [[["x"]]] * 3},
        "nulls": {"image": pa.nulls(3), "text": pa.nulls(3)},
        "dictionary": {"image": pa.array(rows).dictionary_encode(), "text": pa.array(texts).dictionary_encode()},
        "decimals": {"image": rows, "text": texts, "price": pa.array([1, 2, 3], pa.decimal128(38, 10))},
        "large strings": {"image": pa.array(rows, pa.large_string()), "text": pa.array(texts, pa.large_string())},
        "string views": {"image": pa.array(rows, pa.string_view()), "text": pa.array(texts, pa.string_view())},
        "half floats": {"image": rows, "text": texts, "size": pa.array([1.0, 2.0, 3.0], pa.float16())},
        "durations": {"image": rows, "text": texts, "age": pa.array([1, 2, 3], pa.duration("s"))},
        "embedded and one that points outside": {"image": embedded, "text": texts},
        "bytes that are no picture": {"image": [b"", b"GIF89a", b"\0" * 999], "text": texts},
        "bytes of a fixed size": {"image": pa.array([b"abcd"] * 3, pa.binary(4)), "text": texts},
        "texts that are no UTF-8": {"image": rows, "text": pa.array([b"\xff\xfe"] * 3, pa.binary()).view(pa.string())},
        "lists of bytes": {"image": [[picture, None], [], None], "text": texts},
        "a struct of bytes as text": {"image": rows, "text": embedded},
        "no rows": {"image": pa.array([], pa.string()), "text": pa.array([], pa.string())},
        "no columns": {},
        "columns without names": {"": rows, " ": texts},
        "paths in a struct": {
            "image": pa.array([{"bytes": None, "path": "../secret.png"}] * 3, stored),
            "text": texts,
        },
    }


def _parquet(chance: random.Random, number: int) -> tuple[str, Callable[[Path], Path]]:
    tables = _parquet_tables(SOUND["PNG"])
    name = list(tables)[number % len(tables)]

    def write(shop: Path) -> Path:
        file = io.BytesIO()
        pq.write_table(pa.table(tables[name]), file)
        data = file.getvalue()
        turn = number // len(tables)
        if turn % 3 == 1:
            data = data[: chance.randrange(len(data))]
        elif turn % 3 == 2:
            tail = bytearray(data)
            for _ in range(chance.choice([1, 3])):  # the description of the columns stands at the end
                tail[-1 - chance.randrange(min(len(tail), 600))] = chance.randrange(256)
            data = bytes(tail)
        return write_bytes(shop, "shop.parquet", data)

    return f"{name}{['', ', cut', ', changed'][number // len(tables) % 3]}", write


def _odd_folders(chance: random.Random, number: int) -> tuple[str, Callable[[Path], Path]]:
    def folder_of_shards(shop: Path) -> Path:
        (shop / "a.parquet").mkdir()
        return shop_of([], shop).parent

    def only_odd(make: Callable[[Path], Any]) -> Callable[[Path], Path]:
        def write(shop: Path) -> Path:
            make(shop)
            return shop

        return write

    def differing(shop: Path) -> Path:
        pq.write_table(pa.table({"image": ["good.png"], "text": ["x"]}), shop / "a.parquet")
        pq.write_table(pa.table({"image": [{"bytes": SOUND["PNG"], "path": "a"}], "text": [1]}), shop / "b.parquet")
        return shop

    def named_pipe(shop: Path) -> Path:
        os.mkfifo(shop / "shop.csv")
        return shop / "shop.csv"

    ways: dict[str, Callable[[Path], Path]] = {
        "a folder called a.parquet": only_odd(lambda shop: (shop / "a.parquet").mkdir()),
        "a folder called a.parquet beside a table": folder_of_shards,
        "a pipe called a.parquet": only_odd(lambda shop: os.mkfifo(shop / "a.parquet")),
        "a pipe called shop.csv": named_pipe,
        "a pipe called metadata.csv": only_odd(lambda shop: os.mkfifo(shop / "metadata.csv")),
        "a link to itself": only_odd(lambda shop: (shop / "metadata.csv").symlink_to(shop / "metadata.csv")),
        "an empty folder": only_odd(lambda shop: None),
        "a folder that links to itself": only_odd(lambda shop: (shop / "sub").symlink_to(shop)),
        "an empty .parquet": only_odd(lambda shop: (shop / "a.parquet").touch()),
        "an empty .jsonl": only_odd(lambda shop: (shop / "a.jsonl").touch()),
        "shards that differ": differing,
        "a name that is a pattern": lambda shop: write_bytes(shop, "[a]*.csv", b"image,text\ngood.png,Thing\n"),
    }
    name = list(ways)[number % len(ways)]
    return name, ways[name]


def _workbook(rows: list[list[Any]]) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    return saved(book)


def saved(book: openpyxl.Workbook) -> bytes:
    """The workbook as a file."""
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def _with_sheet(sheet: bytes, **others: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(WORKBOOK)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return zipped(files | {"xl/worksheets/sheet1.xml": sheet} | others)


WORKBOOK = _workbook([["image", "text", "size"], ["good.png", "Thing", 12.0], ["good.png", "Other", None]])
_XMLNS = b'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_CELL = b'<row r="%d"><c r="%s" t="inlineStr"><is><t>%s</t></is></c></row>'
_SHEET = b"<worksheet " + _XMLNS + b"><sheetData>%s</sheetData></worksheet>"


def sheet_of_rows(rows: bytes) -> bytes:
    """A workbook whose one sheet has these rows."""
    return _with_sheet(_SHEET % rows)


def sheet_with_a_far_cell(place: bytes) -> bytes:
    """A workbook with a cell in the first row and one in the last."""
    return sheet_of_rows(_CELL % (1, b"A1", b"image") + _CELL % (1_048_576, place, b"x"))


def _excel(chance: random.Random, number: int) -> tuple[str, Callable[[Path], Path]]:
    laughs = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 12))
    ways: dict[str, Callable[[], bytes]] = {
        "no zip": lambda: b"image,text\ngood.png,Thing\n",
        "an empty zip": lambda: zipped({}),
        "a zip of something else": lambda: zipped({"a.txt": b"x"}),
        "the old format's signature": lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2_000),
        "empty cells": lambda: _workbook([[None] * 3] * 5),
        "no rows": lambda: _workbook([]),
        "dates and formulas": lambda: _workbook([["image", "text"], ["good.png", "=1/0"], ["good.png", "=A1"]]),
        "a sheet of 70 MB of spaces": lambda: _with_sheet(_SHEET % (b" " * 70_000_000)),
        "a cell of 70 MB": lambda: _with_sheet(_SHEET % (_CELL % (1, b"A1", b"x" * 70_000_000))),
        "a last cell in the last row": lambda: sheet_with_a_far_cell(b"XFD1048576"),
        "a last cell far below": lambda: sheet_with_a_far_cell(b"B1048576"),
        "a place that is none": lambda: _with_sheet(_SHEET % (_CELL % (1, b"ZZZZZZZ99999999999", b"x"))),
        "a billion laughs": lambda: _with_sheet(
            b'<!DOCTYPE x [<!ENTITY l0 "ha">' + laughs + b"]>" + _SHEET % (_CELL % (1, b"A1", b"&l11;"))
        ),
        "an entity outside": lambda: _with_sheet(
            b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + _SHEET % (_CELL % (1, b"A1", b"&a;"))
        ),
    }
    if number < len(ways):
        name = list(ways)[number]
        return name, lambda shop: write_bytes(shop, "shop.xlsx", ways[name]())
    if number % 2:
        at = chance.randrange(len(WORKBOOK))
        return f"cut to {at} bytes", lambda shop: write_bytes(shop, "shop.xlsx", WORKBOOK[:at])
    return "changed bytes", lambda shop: write_bytes(shop, "shop.xlsx", changed_bytes(chance, WORKBOOK))


# Tables that hypothesis draws, as rows of cells.

_texts = st.text(max_size=20) | st.sampled_from(["good.png", "../secret.png", "Thing", "n/a", "train", "a;b", "0.5"])
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _texts
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=2)
)
_names = st.sampled_from(["image", "images", "text", "captions", "title", "product", "image_id", "split", "concepts"])


def tables() -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows as JSON has them: any names, any values."""
    return st.lists(st.dictionaries(_names | _texts, _values, max_size=5), min_size=1, max_size=6)


def write_table(rows: list[dict[str, Any]], shop: Path) -> Path:
    """Writes drawn rows behind a sound one."""
    sound = {"image": "good.png", "text": "Thing"}
    text = "".join(json.dumps(row) + "\n" for row in [sound, *rows])
    return write_bytes(shop, "shop.jsonl", text.encode())


def _draw(start: int) -> list[list[dict[str, Any]]]:
    """Some tables, the same ones for the same start."""
    found: list[list[dict[str, Any]]] = []
    quick = settings(max_examples=25, database=None, phases=[Phase.generate], suppress_health_check=HealthCheck)
    seed(start)(quick(given(tables())(lambda rows: found.append(rows))))()
    return found


def _drawn(chance: random.Random) -> Iterator[Case]:
    for turn in count():
        for number, rows in enumerate(_draw(chance.randrange(2**32))):
            yield Case("drawn tables", f"{turn}.{number}", lambda shop, rows=rows: write_table(rows, shop))


KINDS = [
    *PICTURE_KINDS,
    numbered("CSV", _csv),
    numbered("JSON", _json),
    numbered("Parquet", _parquet),
    numbered("odd folders", _odd_folders),
    numbered("Excel", _excel),
    _drawn,
]
