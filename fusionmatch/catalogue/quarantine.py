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
"""Rows and pictures that could not be used: kept with their place and reason, never silently dropped."""

import csv
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


QUARANTINE_SUFFIXES = (".csv", ".jsonl")
_LONGEST_VALUE = 200


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """
    One thing the catalogue could not use.

    A row whose pictures are only partly broken appears here once per broken picture, and stays in the dataset with
    the others.

    Args:
        source (`str`): File (or hub dataset) the row comes from.
        row (`int`): Data row in that source, counted from 1; a header does not count.
        reason (`str`): What is wrong, in words that are the same for every row with this fault.
        field (`str`, *optional*): Column at fault; `None` when the whole row is.
        value (`str`, *optional*): What the field holds, cut to 200 characters.
        path (`str`, *optional*): Picture file the value was resolved to.
        detail (`str`, *optional*): What is particular to this row, such as the decoder's message.
    """

    source: str
    row: int
    reason: str
    field: str | None = None
    value: str | None = None
    path: str | None = None
    detail: str | None = None

    def __post_init__(self) -> None:
        if self.value is not None and len(self.value) > _LONGEST_VALUE:
            object.__setattr__(self, "value", self.value[: _LONGEST_VALUE - 1] + "…")


def count_reasons(rows: Iterable[QuarantinedRow]) -> list[tuple[str, int]]:
    """Counts the reasons, the commonest first."""
    return Counter(row.reason for row in rows).most_common()


def for_spreadsheet(cell: Any) -> Any:
    """A cell of a CSV file, which a spreadsheet is not to take for a formula: a catalogue's texts may be anybody's."""
    return f"'{cell}" if isinstance(cell, str) and cell[1:] and cell[0] in "=+-@\t\r" else cell


def check_quarantine_path(path: str | os.PathLike) -> Path:
    """
    Checks that a quarantine file can be written under this name, before hours of reading.

    Raises:
        `ValueError`: The extension is neither `.jsonl` nor `.csv`.
    """
    path = Path(path)
    if path.suffix.lower() not in QUARANTINE_SUFFIXES:
        raise ValueError(
            f"The quarantine file must end in one of {', '.join(QUARANTINE_SUFFIXES)}, got '{path.name}'. "
            "Use .jsonl for programs and .csv for a spreadsheet."
        )
    return path


def write_quarantine(rows: Iterable[QuarantinedRow], path: str | os.PathLike) -> Path:
    """
    Writes the rows as JSON lines or as CSV, by the extension. The file appears whole or not at all.

    Args:
        rows (`Iterable[QuarantinedRow]`): What to write; none gives a file without rows, so that no stale one stays.
        path (`str` or `os.PathLike`): File to write, `.jsonl` or `.csv`; its folder is made when it is missing.

    Returns:
        `Path`: The file written.

    Raises:
        `ValueError`: The extension is neither `.jsonl` nor `.csv`.
    """
    path = check_quarantine_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    as_csv = path.suffix.lower() == ".csv"
    # The byte order mark makes spreadsheets read Japanese as what it is.
    encoding = "utf-8-sig" if as_csv else "utf-8"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding=encoding, newline="" if as_csv else "\n") as file:
            if as_csv:
                writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(QuarantinedRow)])
                writer.writeheader()
                writer.writerows({name: for_spreadsheet(cell) for name, cell in asdict(row).items()} for row in rows)
            else:
                file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        # mkstemp gives a file only its owner may read; the report is for colleagues, under the usual mask.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
