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
"""Reading the first sheet of an Excel workbook."""

import csv
import io
import logging
import re
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat


logger = logging.getLogger(__name__)

# A sheet is laid out whole, from its first cell to its last: one stray cell in the last corner takes more memory than
# there is, and calamine then ends the process. A large table is none of these: much of it is filled. So many cells,
# 32 columns of full length, take about 1.5 GB.
_MOST_CELLS = 2**25
_LEAST_FILLED = 4
_PLACE = re.compile(r"([A-Z]{1,3})([0-9]{1,7})", re.IGNORECASE)
# Rows and cells, and the place that programs write first.
_ROW_OR_CELL = re.compile(rb"""<(?:[^\s<>/]*:)?(?:row|c)[\s/>](?:r="([A-Z]{0,3})([0-9]{1,7})")?""")
# What is longer is looked at by the parser.
_LONGEST_TAG = 2**16
# Workbooks are packed to a tenth or so, and to a fiftieth at most; what is packed to less is made to fill the memory.
_LEAST_SHARE = 200
_SMALL = 2**26
# What a zip file and XML raise; RuntimeError where a password is asked for, EOFError where a part ends too early.
_BROKEN = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, expat.ExpatError, ValueError)


def workbook_as_csv(file: Path) -> str:
    """
    The first sheet, as the CSV that one would save it as.

    Raises:
        `ImportError`: python-calamine is not installed.
        `ValueError`: The file is no workbook that can be read, or made to fill the memory.
    """
    try:
        import python_calamine
    except ImportError as error:
        raise ImportError(
            f"Reading '{file.name}' needs python-calamine. Install it with: pip install \"fusionmatch[excel]\". Or "
            "save the sheet as CSV UTF-8."
        ) from error
    text = io.StringIO()
    writer = csv.writer(text)
    try:
        _check_workbook(file)
        with python_calamine.CalamineWorkbook.from_path(file) as book:
            first, *others = book.sheet_names
            # A sheet may begin with empty rows and have notes beside the table.
            filled = (row for row in book.get_sheet_by_index(0).iter_rows() if any(str(cell).strip() for cell in row))
            named: list[int] = []
            for row in filled:
                named = named or [column for column, name in enumerate(row) if str(name).strip()]
                chosen = [row[column] for column in named]
                # Whole numbers are stored with a fraction, so product 12 would be called 12.0.
                writer.writerow(
                    [int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in chosen]
                )
    except (python_calamine.CalamineError, *_BROKEN) as error:
        raise ValueError(
            f"'{file}' is no workbook that can be read: {error}. Save it again, or as CSV UTF-8."
        ) from error
    if others:
        logger.warning(f"'{file.name}' has {len(others) + 1} sheets; the first one, '{first}', is read.")
    return text.getvalue()


def _check_workbook(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        size, packed = sum(part.file_size for part in parts), sum(part.compress_size for part in parts)
        if size > max(_SMALL, _LEAST_SHARE * packed):
            raise ValueError(f"it unpacks from {packed:,} bytes to {size:,}")
        for part in _first_sheet(archive):
            with archive.open(part) as stream:
                if _is_small(stream):
                    continue
            extent = _Extent()
            with archive.open(part) as stream:
                _parse(stream, extent.begin)
            if extent.rows * extent.columns > max(_MOST_CELLS, _LEAST_FILLED * extent.filled):
                raise ValueError(
                    f"the sheet reaches down to row {extent.rows:,} and over to column {extent.columns:,}, which is "
                    f"more than {_MOST_CELLS:,} cells, and holds something in {extent.filled:,}; delete what stands "
                    "far from the table"
                )


def _is_small(stream: IO[bytes]) -> bool:
    """Whether all rows and cells say their place and none is far; far quicker than to look at what they hold."""
    row, column, rest = 0, 0, b""
    while piece := stream.read(2**22):
        piece = rest + piece
        cut = piece.rfind(b"<")  # a tag may be cut in two
        rest = piece[cut:] if cut >= 0 else b""
        places = _ROW_OR_CELL.findall(piece, 0, max(cut, 0))
        row = max(row, max((int(number or _MOST_CELLS + 1) for _, number in places), default=0))
        column = max(column, max((_column_number(own.decode()) for own in {own for own, _ in places}), default=0))
        if row * max(column, 1) > _MOST_CELLS or len(rest) > _LONGEST_TAG:
            return False
    return True


def _first_sheet(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The part that holds the first sheet, in whatever folder; all parts where it is not plain which one that is."""
    parts = archive.infolist()
    ids: list[list[str]] = []  # of each sheet
    targets: dict[str, list[str]] = {}

    def begin(name: str, attributes: dict[str, str]) -> None:
        if _local(name) == "sheet":
            ids.append([value for key, value in attributes.items() if _local(key) == "id"])
        elif _local(name) == "Relationship":
            targets.setdefault(attributes.get("Id", ""), []).append(attributes.get("Target", ""))

    for end in ("workbook.xml", "workbook.xml.rels"):
        found = [part for part in parts if part.filename.lower().endswith(end)]
        if len(found) != 1:
            return parts
        with archive.open(found[0]) as stream:
            _parse(stream, begin)
    files = {_file_name(target) for own in (ids[0] if ids else []) for target in targets.get(own, [])}
    return [part for part in parts if _file_name(part.filename) in files] or parts


def _file_name(path: str) -> str:
    return path.lower().replace("\\", "/").rpartition("/")[2]


def _local(name: str) -> str:
    return name.split(":", 1)[-1]


def _parse(stream: IO[bytes], begin: Any) -> None:
    """Calls `begin` for every element; in UTF-8 and without declared entities, as calamine reads."""
    parser = expat.ParserCreate("UTF-8")
    parser.StartElementHandler = begin
    parser.StartDoctypeDeclHandler = _refuse_declarations
    parser.ParseFile(stream)


def _refuse_declarations(*_: Any) -> None:
    raise ValueError("it declares XML entities of its own")


class _Extent:
    """How far the cells of a sheet reach that hold something, counted from its first cell, and how many they are."""

    def __init__(self) -> None:
        self.rows = self.columns = self.filled = 0
        self.row = self.column = self.reached = 0

    def begin(self, name: str, attributes: dict[str, str]) -> None:
        """An element begins; rows and cells that say no place follow the one before."""
        kind = _local(name)
        if kind == "c":
            place = attributes.get("r")
            if place is None:
                self.column, self.reached = self.column + 1, self.row
            elif found := _PLACE.fullmatch(place):
                self.column, self.reached = _column_number(found[1]), int(found[2])
            else:
                raise ValueError(f"a cell stands at '{place[:20]}', which is no place in a sheet")
        elif kind in ("v", "is"):
            self.filled += 1
            self.rows, self.columns = max(self.rows, self.reached), max(self.columns, self.column)
        elif kind == "row":
            self.row = int(attributes["r"]) if "r" in attributes else self.row + 1
            self.column = 0


@cache
def _column_number(letters: str) -> int:
    """A is 1, Z 26, AA 27."""
    number = 0
    for letter in letters.upper():
        number = 26 * number + ord(letter) - 64
    return number
