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
"""Which pictures a table names or holds, row by row, and what each of them turned out to be."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import Columns, guess_separator, split_cell
from .pictures import NOT_NAMED, UNREADABLE, Checked, Found, check_files, check_stored, find_picture, is_url
from .quarantine import QuarantinedRow
from .sources import Source
from .tables import chunks


Download = Callable[[Iterable[str]], dict[str, Found]]


@dataclass
class NamedPictures:
    """
    The pictures of one table: `n` times one is named, with `m` different entries. What rows name in the same words is
    one entry; of embedded pictures each is.

    Args:
        rows (`np.ndarray`): (n,), the row of the table, from 0, ascending.
        further (`np.ndarray`): (n,), whether the column of additional pictures names it.
        entries (`np.ndarray`): (n,), which entry it is.
        values (`Sequence[str | None]`): (m,), what the cell says.
        paths (`list[str | None]`): (m,), the file it points to, there or not; `None` where there cannot be one.
        digests (`list[str]`, *optional*): (m,), digest of an embedded picture's bytes; `None` for files.
        hashes (`list[bytes]`): (m,), what is the same in a copy
            ([`~fusionmatch.catalogue.duplicates.picture_hash`]); empty where the picture cannot be used.
        faults (`dict[int, tuple[str, str | None]]`): Reason and detail of each entry that cannot be used.
        notes (`dict[int, tuple[str, ...]]`): What is worth a look in entries that can.
        unnamed (`dict[int, str | None]`): The rows that name none, with what they say in place of it.
    """

    rows: np.ndarray
    further: np.ndarray
    entries: np.ndarray
    values: Sequence[str | None]
    paths: list[str | None]
    digests: list[str] | None = None
    hashes: list[bytes] = field(default_factory=list)
    faults: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    notes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    unnamed: dict[int, str | None] = field(default_factory=dict)

    def take(self, entry: int, checked: Checked) -> None:
        """Keeps what decoding an entry told."""
        self.hashes[entry] = checked.hash
        if checked.reason is not None:
            self.faults[entry] = (checked.reason, checked.detail)
        if checked.notes:
            self.notes[entry] = checked.notes

    def copy(self, entry: int, to: int) -> None:
        """Keeps the same for another entry that points to the same file."""
        self.hashes[to] = self.hashes[entry]
        for told in (self.faults, self.notes):
            if entry in told:
                told[to] = told[entry]

    def key(self, entry: int) -> str:
        """What two entries have in common that are the same file or bytes."""
        return str(self.paths[entry]) if self.digests is None else self.digests[entry]

    def usable(self) -> np.ndarray:
        """(n,), whether the picture can be used."""
        return np.fromiter((bool(found) for found in self.hashes), bool, len(self.hashes))[self.entries]

    def note(
        self, source: Source, columns: Columns, at: int, reason: str, detail: str | None = None
    ) -> QuarantinedRow:
        """A line on the picture that is named in place `at`, from 0 to n - 1."""
        entry = int(self.entries[at])
        name = columns.additional_images if self.further[at] else columns.image
        place = source.places[int(self.rows[at])]
        return QuarantinedRow(
            *place, reason, field=name, value=self.values[entry], path=self.paths[entry], detail=detail
        )

    def quarantine(self, source: Source, columns: Columns) -> list[QuarantinedRow]:
        """A line on each picture that cannot be used, and on each row that names none."""
        found = [
            QuarantinedRow(*source.places[row], NOT_NAMED, field=columns.image, value=value)
            for row, value in self.unnamed.items()
        ]
        for at in np.flatnonzero(np.isin(self.entries, list(self.faults))).tolist():
            found.append(self.note(source, columns, at, *self.faults[int(self.entries[at])]))
        return found


def find_pictures(
    source: Source,
    columns: Columns,
    image_root: Path | None = None,
    separator: str | None = None,
    download: Download | None = None,
) -> NamedPictures:
    """
    Finds the pictures of a table and decodes each once.

    Args:
        source (`Source`): The table. One that embeds pictures has them laid out in `pictures` after.
        columns (`Columns`): The columns to read.
        image_root (`Path`, *optional*): Folder the pictures may lie in besides the table's own.
        separator (`str`, *optional*): What joins several pictures in one cell; guessed when not given.
        download (`Callable`, *optional*): Gives for URLs the files that they were downloaded to; without it they are
            quarantined.
    """
    table, further = source.table, columns.additional_images
    if source.embedded is not None and columns.image in source.embedded.column_names:
        stored = {name: _stored_paths(source, name) for name in (columns.image, further) if name is not None}
        if stored[columns.image] is None:
            return _find_embedded(source, columns)
        table = pa.table({name: paths for name, paths in stored.items() if paths is not None})
    folders = [folder for folder in (image_root, source.root) if folder is not None]
    joined = columns.image if columns.additional_images is None else further
    if not separator and joined is not None:
        separator = guess_separator(cell for chunk in chunks(table, [joined]) for (cell,) in chunk)
    first_separator, more_separator = (separator, None) if columns.additional_images is None else (None, separator)
    rows, entries, other = array("q"), array("q"), bytearray()
    known: dict[str, int] = {}
    unnamed: dict[int, str | None] = {}
    cells = (row for chunk in chunks(table, [columns.image, further]) for row in chunk)
    for row, (cell, more) in enumerate(cells):
        before = len(rows)
        for is_more, value, by in ((0, cell, first_separator), (1, more, more_separator)):
            for entry in split_cell(value, by):
                rows.append(row)
                other.append(is_more)
                entries.append(known.setdefault(entry, len(known)))
        if len(rows) == before:
            unnamed[row] = None if cell is None else str(cell)
    values = list(known)
    named = NamedPictures(
        rows=np.array(rows, np.int64),
        further=np.frombuffer(bytes(other), bool),
        entries=np.array(entries, np.int64),
        values=values,
        paths=[None] * len(values),
        hashes=[b""] * len(values),
        unnamed=unnamed,
    )
    downloaded = download([value for value in values if is_url(value)]) if download is not None else {}
    first: dict[str, int] = {}
    for entry, value in enumerate(values):
        found = downloaded[value] if value in downloaded else find_picture(value, folders)
        path = named.paths[entry] = None if found.path is None else str(found.path)
        if found.reason is not None:
            named.faults[entry] = (found.reason, found.detail)
        else:
            first.setdefault(path, entry)
    for entry, checked in zip(first.values(), check_files(list(first)), strict=True):
        named.take(entry, checked)
        if checked.reason == UNREADABLE and is_url(values[entry]):
            Path(named.paths[entry]).unlink(missing_ok=True)  # what is no picture today is asked for again next time
            named.paths[entry] = None
    for entry, path in enumerate(named.paths):
        if entry not in named.faults and first.get(path, entry) != entry:
            named.copy(first[path], entry)
    return named


def _stored_paths(source: Source, name: str) -> pa.ChunkedArray | None:
    # Parquet written without embedding keeps the struct of bytes and path with no bytes in it.
    column = source.embedded.data[name]
    listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    kind = column.type.value_type if listed else column.type
    if source.root is None or not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    # Not flattened, which would copy the bytes where there are some.
    pictures = [part.values if listed else part for part in column.chunks]
    if any(pc.struct_field(part, "bytes").null_count < len(part) for part in pictures):
        return None
    if not listed:
        return pc.struct_field(column, "path")
    cells = ([one["path"] for one in cell.as_py() or () if one is not None] for cell in column)
    return pa.chunked_array([pa.array(cells, pa.list_(kind.field("path").type))])


def _find_embedded(source: Source, columns: Columns) -> NamedPictures:
    names = [columns.image] + ([columns.additional_images] if columns.additional_images else [])
    kinds = [source.embedded.data.schema.field(name).type for name in names]
    if len(names) == 1 and not (pa.types.is_list(kinds[0]) or pa.types.is_large_list(kinds[0])):
        source.pictures = source.embedded.select_columns(names).rename_columns({names[0]: "image"})
        source.pictures = source.pictures.cast_column("image", datasets.Image())
        rows = np.arange(len(source.places))
    else:
        flat = source.embedded.select_columns(names).with_format("arrow")
        source.pictures = flat.map(
            _flatten,
            batched=True,
            batch_size=100,
            with_indices=True,
            remove_columns=names,
            features=datasets.Features({"image": datasets.Image(), "row": datasets.Value("int64")}),
            desc="Laying out pictures",
        ).with_format(None)
        rows = source.pictures.data["row"].to_numpy()
        source.pictures = source.pictures.select_columns(["image"])
    named = NamedPictures(
        rows=rows,
        further=np.zeros(len(rows), bool),
        entries=np.arange(len(rows)),
        values=pc.struct_field(source.pictures.data["image"], "path").to_pylist(),
        paths=[None] * len(rows),
        digests=[],
        hashes=[b""] * len(rows),
        unnamed=dict.fromkeys(np.setdiff1d(np.arange(len(source.places)), rows).tolist()),
    )
    for entry, checked in enumerate(check_stored(source.pictures, follow_paths=source.root is None)):
        named.digests.append(checked.digest)
        named.take(entry, checked)
    return named


def _flatten(table: pa.Table, rows: list[int]) -> dict[str, list[Any]]:
    cells = zip(rows, *(table[name].to_pylist() for name in table.column_names), strict=True)
    flat: dict[str, list[Any]] = {"image": [], "row": []}
    for row, *columns in cells:
        for cell in columns:
            for entry in cell if isinstance(cell, list) else [cell]:
                if entry is not None:
                    flat["image"].append(entry)
                    flat["row"].append(row)
    return flat
