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
from pathlib import Path


logger = logging.getLogger(__name__)

# A sheet is laid out whole, from its first cell to its last: one stray cell in the last corner takes more memory than
# there is, and calamine then ends the process.
_MOST_CELLS = 20_000_000
_PLACE = re.compile(rb"""\br=["']([A-Z]{1,9})(\d{1,19})["']""")
# Workbooks are packed to a tenth or so, and to a fiftieth at most; what is packed to less is made to fill the memory.
_LEAST_SHARE = 200
_SMALL = 2**26


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
    except (python_calamine.CalamineError, zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError) as error:
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
        for part in parts:
            if not part.filename.lower().startswith("xl/worksheets/"):
                continue
            row, column, rest = 0, 0, b""
            with archive.open(part) as stream:
                while piece := stream.read(2**22):
                    piece = rest + piece
                    places = _PLACE.findall(piece)
                    rest = piece[-64:]  # a place may be cut in two
                    row = max(row, max((int(number) for _, number in places), default=0))
                    letters = {letters for letters, _ in places}
                    column = max(column, max((_column_number(own) for own in letters), default=0))
            if row * column > _MOST_CELLS:
                raise ValueError(
                    f"a sheet reaches down to row {row:,} and over to column {column:,}, which is more than "
                    f"{_MOST_CELLS:,} cells; delete what stands far from the table"
                )


def _column_number(letters: bytes) -> int:
    """A is 1, Z 26, AA 27."""
    number = 0
    for letter in letters:
        number = 26 * number + letter - 64
    return number
