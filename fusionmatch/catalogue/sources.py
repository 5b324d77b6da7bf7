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
"""Reading what companies keep: CSV, JSON lines and Parquet files, folders of pictures, hub datasets."""

import csv
import glob
import io
import json
import logging
import os
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from .encodings import find_encoding
from .excel import workbook_as_csv
from .quarantine import QuarantinedRow
from .splits import SPLITS, split_name
from .tables import KeepError, Places, in_chunks, keep


logger = logging.getLogger(__name__)

NO_JSON = "line is not JSON"
NO_OBJECT = "entry is not a JSON object"
NO_CSV = "row is not CSV"
OTHER_LENGTH = "row has another number of fields than the header"

CataloguePath = str | os.PathLike
CataloguePaths = CataloguePath | list[CataloguePath] | Mapping[str, CataloguePath | list[CataloguePath]]

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".xlsx")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# What `save_to_disk` of datasets writes beside its folders, or its .arrow files.
_SAVED = ({"dataset_dict.json"}, {"dataset_info.json", "state.json"})
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
# Half of an emoji perhaps, left by an export that cuts texts to a length; whole ones have two halves.
_HALF = re.compile(r"\\u[dD]")
_LONGEST_CELL = 2**24


@dataclass
class Source:
    """
    One table as it was read, before anything is chosen or checked.

    Args:
        table (`pa.Table`): Every column but those that embed pictures.
        places (`Places`): File name and 1-based data row of each row of the table.
        root (`Path`, *optional*): Folder the picture paths are relative to; `None` for a hub dataset.
        split (`str`, *optional*): The user's own split these rows belong to; `None` when there is none yet.
        embedded (`datasets.Dataset`, *optional*): The columns that embed pictures, memory-mapped, row for row beside
            the table.
        faults (`list[QuarantinedRow]`): Rows that could not even be read.
        pictures (`datasets.Dataset`, *optional*): The embedded pictures one a row, in a column `image`, once they are
            laid out.
    """

    table: pa.Table
    places: Places
    root: Path | None = None
    split: str | None = None
    embedded: datasets.Dataset | None = None
    faults: list[QuarantinedRow] = field(default_factory=list)
    pictures: datasets.Dataset | None = None

    @property
    def name(self) -> str:
        """Name to call the table by in messages."""
        return self.places[0][0] if self.places else str(self.root)

    @property
    def column_names(self) -> list[str]:
        """Names of all columns, those that embed pictures last."""
        return [*self.table.column_names, *(self.embedded.column_names if self.embedded is not None else [])]

    def head(self, rows: int) -> "Source":
        """The first rows alone, without the faults behind them."""
        if rows >= len(self.places):
            return self
        last = self.places[rows - 1]
        return Source(
            table=self.table.slice(0, rows),
            places=self.places[:rows],
            root=self.root,
            split=self.split,
            embedded=self.embedded.select(range(rows)) if self.embedded is not None else None,
            faults=[fault for fault in self.faults if fault.source == last[0] and fault.row < last[1]],
        )


def read_sources(path: CataloguePaths, max_samples: int | None = None) -> list[Source]:
    """
    Reads the tables a catalogue consists of.

    Args:
        path (`str`, `os.PathLike`, `list` or `Mapping`): As in [`load_catalogue`].
        max_samples (`int`, *optional*): Most rows to keep of each split (of the whole when there are no splits).

    Raises:
        `FileNotFoundError`: Nothing lies at the path, or the hub dataset cannot be reached.
        `ValueError`: An extension, an encoding or a table that cannot be read; the message names file and line.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, got {max_samples}. Leave it out to read everything.")
    if isinstance(path, Mapping):
        per_split: dict[str | None, list[Source]] = {}
        for name, value in path.items():
            split = split_name(name)
            if split is None:
                raise ValueError(f"Unknown split '{name}' in the mapping; allowed are {', '.join(SPLITS)}.")
            per_split.setdefault(split, []).extend(_read_split(value, split))
        if not per_split:
            raise ValueError(f"The mapping of splits is empty; give at least one of {', '.join(SPLITS)}.")
    elif _is_hub_name(path):
        per_split = _read_hub(str(path))
    else:
        per_split = {None: _read_split(path, None)}
    if max_samples is None:
        return [source for sources in per_split.values() for source in sources]
    kept = []
    for sources in per_split.values():
        left = max_samples
        for source in sources:
            if left:
                kept.append(source.head(left))
                left -= len(kept[-1].places)
    return kept


def _read_split(value: CataloguePath | Iterable[CataloguePath], split: str | None) -> list[Source]:
    values = [value] if isinstance(value, str | os.PathLike) else list(value)
    files = [file for one in values for file in _list_files(one)]
    sources, shards = [], {}
    for file in files:
        if file.suffix.lower() == ".parquet":
            shards.setdefault(file.parent, []).append(file)
        elif file.suffix.lower() == ".xlsx":
            sources.append(_read_csv(io.StringIO(workbook_as_csv(file), newline=""), file, split, ","))
        else:
            sources.append(_read_text_table(file, split))
    return sources + [_read_parquet(group, split) for group in shards.values()]


def _list_files(value: CataloguePath) -> list[Path]:
    path = Path(value).expanduser()
    if path.is_dir():
        return _list_folder(path)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"Cannot read '{path}': its extension is '{path.suffix}', allowed are {', '.join(SUFFIXES)}. "
                "Save other spreadsheets as one of them."
            )
        return [path]
    if glob.has_magic(str(path)):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - an absolute pattern
        files = [file for one in found if one.is_file() for file in _list_files(one)]
        if files:
            return files
        raise FileNotFoundError(f"No file matches '{value}' (looked from {Path.cwd()}).")
    raise FileNotFoundError(f"No catalogue at '{value}' (looked from {Path.cwd()}). Check the path.")


def _list_folder(folder: Path) -> list[Path]:
    metadata = [folder / name for name in _METADATA if (folder / name).is_file()]
    tables = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
    shards = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
    if not metadata and shards and not [file for file in tables if file.suffix.lower() != ".parquet"]:
        return _inside(shards, folder)
    found = metadata or tables
    if {file.name for file in found} in _SAVED:
        raise ValueError(
            f"The folder '{folder}' was written by save_to_disk of datasets, for datasets alone. Load it with "
            "datasets.load_from_disk, write each split with to_parquet, and give the path of that."
        )
    if len(found) == 1:
        return _inside(found, folder)
    if found:
        raise ValueError(
            f"The folder '{folder}' holds several tables: {', '.join(file.name for file in found)}. "
            "Give the path of the one to read."
        )
    raise FileNotFoundError(
        f"The folder '{folder}' holds no table. A folder of pictures needs a metadata.jsonl or metadata.csv with a "
        "column file_name and a column of texts; a folder of shards needs .parquet files."
    )


def _inside(files: list[Path], folder: Path) -> list[Path]:
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"'{file}' is a link that leads out of its folder, to '{file.resolve()}'. Give the path of the table "
                "itself (or a glob, in quotes) to read it all the same."
            )
    return files


def _read_text_table(file: Path, split: str | None) -> Source:
    comma_separated = file.suffix.lower() in (".csv", ".tsv")
    # Not every kind of line end: JSON strings may hold separators such as U+2028, and quoted cells line breaks.
    with file.open(encoding=find_encoding(file), newline="" if comma_separated else "\n") as stream:
        return (_read_csv if comma_separated else _read_json)(stream, file, split)


def _read_csv(lines: TextIO, file: Path, split: str | None, delimiter: str | None = None) -> Source:
    head = [lines.readline().lstrip("\ufeff")]  # exports that were joined hold a second mark
    while head[-1] and not head[-1].strip("\r\n"):
        head.append(lines.readline())
    # Spreadsheets write semicolons where the comma is the decimal sign, and tabs in UTF-16.
    if delimiter is None:
        delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=head[-1].count)
    read = _csv_rows(chain(head, lines), delimiter)
    _, header, unread = next(read, (0, [], ""))
    if header is None:
        raise ValueError(
            f"'{file}' names its columns in a line that is not CSV: {unread.strip()[:80]!r}. Look for a quotation "
            "mark that is opened and not closed."
        )
    header = [name.strip() for name in header]
    if not any(header):
        raise ValueError(f"'{file}' is empty: the first line must name the columns.")
    # Spreadsheets write columns that are empty from the first line to the last.
    unnamed = {place: 0 for place, name in enumerate(header) if not name}
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise ValueError(f"'{file}' names a column twice: {', '.join(map(repr, doubled))}. Rename one of them.")
    rows = array("q")
    faults: list[QuarantinedRow] = []

    def whole() -> Iterator[list[str]]:
        for number, (line, cells, unread) in enumerate(read, start=1):
            if cells is None:
                detail = f"line {line}: a quotation mark that is not closed, or amid a cell"
                faults.append(QuarantinedRow(file.name, number, NO_CSV, value=unread, detail=detail))
                continue
            if len(cells) == len(header):
                rows.append(number)
                for place in unnamed:
                    unnamed[place] += bool(cells[place].strip())
                yield [cell for place, cell in enumerate(cells) if place not in unnamed] if unnamed else cells
                continue
            value, detail = delimiter.join(cells), f"line {line}: {len(cells)} in place of {len(header)}"
            faults.append(QuarantinedRow(file.name, number, OTHER_LENGTH, value=value, detail=detail))

    names = [name for name in header if name]
    parts = keep(_to_table(some, names) for some in in_chunks(whole()))
    table = pa.concat_tables(part.table for part in parts) if parts else _to_table([], names)
    for place, count in unnamed.items():
        if count:
            logger.warning(
                f"'{file.name}': column {place + 1} has no name and is left out, with what {count:,} rows say in it. "
                "Name it in the first line."
            )
    return Source(table, Places([(file.name, rows)]), file.parent.resolve(), split, faults=faults)


def _csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | None, str]]:
    """
    The line that each row begins on, its cells, and nothing. Where a quotation mark is opened and not closed, or
    stands amid a cell that has some around it: no cells, and the line itself; what follows it is read anew.
    """
    csv.field_size_limit(_LONGEST_CELL)  # of the whole process: a reader cannot have one of its own
    rest, number = iter(lines), 0
    # Lines of the row that is being read, and those that are to be read anew.
    read, again = deque[str](), deque[str]()

    def following() -> Iterator[str]:
        while (line := again.popleft() if again else next(rest, None)) is not None:
            read.append(line)
            yield line

    reader = csv.reader(following(), delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:
            number += 1
            yield number, None, read.popleft()
            again.extendleft(reversed(read))
            read.clear()
            reader = csv.reader(following(), delimiter=delimiter, strict=True)
            continue
        if cells is None:
            return
        if cells:  # a blank line is no row
            yield number + 1, cells, ""
        number += len(read)
        read.clear()


def _to_table(rows: list[list[str]], names: list[str]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pa.table([pa.array(column, pa.string()) for column in columns], names=names)


def _read_json(lines: TextIO, file: Path, split: str | None) -> Source:
    listed = next(_json_lines(lines), "").lstrip().startswith("[")
    halved = False
    if listed:
        lines.seek(0)
        text = lines.read().lstrip("\ufeff")
        try:
            objects = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'{file}' is no JSON list: {error}. JSON lines hold one object a line.") from error
        halved = _HALF.search(text) is not None
    rows, faults = array("q"), []

    def records(rows: array, faults: list[QuarantinedRow]) -> Iterator[dict[str, Any]]:
        for number, entry in enumerate(objects if listed else _json_lines(lines), start=1):
            try:
                # A list may hold its objects as text.
                record = json.loads(entry) if isinstance(entry, str) else entry
                if halved or (not listed and _HALF.search(entry)):
                    json.dumps(record, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:  # no JSON, a number of 5,000 digits, lists in lists in lists
                value = json.dumps(entry) if listed else entry
                faults.append(QuarantinedRow(file.name, number, NO_JSON, value=value, detail=str(error)))
                continue
            if not isinstance(record, dict):
                faults.append(QuarantinedRow(file.name, number, NO_OBJECT, value=str(record)))
                continue
            rows.append(number)
            yield record

    mixed: set[str] = set()
    parts = [part.table for part in keep(_from_records(some, mixed) for some in in_chunks(records(rows, faults)))]
    if not rows:
        raise ValueError(f"'{file}' holds no JSON object; each is one row.")
    # A column of different kinds is read again, at once: what a chunk made of it may have lost which kind a cell was.
    table = _join(parts, mixed, lambda name: _to_array([record.get(name) for record in records(array("q"), [])]))
    return Source(table, Places([(file.name, rows)]), file.parent.resolve(), split, faults=faults)


def _json_lines(lines: TextIO) -> Iterator[str]:
    """The lines from the first one on, without empty ones."""
    lines.seek(0)
    # Exports that were joined hold a second mark.
    marked = (line if number else line.lstrip("\ufeff") for number, line in enumerate(lines))
    return (line.removesuffix("\n") for line in marked if line.strip())


def _from_records(records: list[dict[str, Any]], mixed: set[str]) -> pa.Table:
    names = dict.fromkeys(name for record in records for name in record)
    if not names:  # but rows all the same
        return pa.Table.from_struct_array(pa.array(records, pa.struct([])))
    columns = {name: _to_array([record.get(name) for record in records]) for name in names}
    for name, column in columns.items():
        cells = (record.get(name) for record in records) if pa.types.is_string(column.type) else ()
        if any(cell is not None and not isinstance(cell, str) for cell in cells):
            mixed.add(name)
    return pa.table(columns)


def _join(tables: list[pa.Table], mixed: set[str], read_again: Callable[[str], pa.Array]) -> pa.Table:
    columns = {}
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        parts = [table[name] if name in table.column_names else pa.nulls(len(table)) for table in tables]
        kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
        if len(kinds) > 1 or name in mixed:
            columns[name] = read_again(name)
            continue
        kind = kinds.pop() if kinds else pa.null()
        found = [pa.nulls(len(part), kind) if pa.types.is_null(part.type) else part for part in parts]
        columns[name] = pa.chunked_array([c for p in found for c in (p.chunks if hasattr(p, "chunks") else [p])], kind)
    return pa.table(columns)


def _to_array(values: list[Any]) -> pa.Array:
    if any(isinstance(value, list) for value in values):
        values = [value if value is None or isinstance(value, list) else [value] for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        # One column of mixed kinds, such as 12 and "12-B": the written form holds them all.
        return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])


def _embeds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _embeds_pictures(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read_parquet(files: list[Path], split: str | None) -> Source:
    counts: list[tuple[str, range]] = []
    for file in files:
        try:
            count = pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"'{file}' is not a whole Parquet file: {error}. Copy or write it again.") from error
        counts.append((file.name, range(1, count + 1)))
    places = Places(counts)
    try:
        if any(_embeds_pictures(kind) for kind in pq.read_schema(files[0]).types):
            # Kept on disk and memory-mapped by datasets' own cache: the pictures may exceed the memory.
            rows = datasets.Dataset.from_parquet([glob.escape(str(file)) for file in files])
            source = _from_dataset(rows, places, files[0].parent.resolve(), split)
        else:
            tables = [part.table for part in keep(table for file in files for table in _parquet_tables(file))]
            table = pa.concat_tables(tables, promote_options="default")
            source = Source(table.replace_schema_metadata(), places, files[0].parent.resolve(), split)
        source.table = _with_valid_cells(source)
    except KeepError:
        raise
    except (pa.ArrowException, datasets.exceptions.DatasetsError, ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"Cannot read the {len(files)} Parquet file(s) in '{files[0].parent}' as one table: {error}. "
            "Shards must have the same columns of the same types."
        ) from error
    return source


def _parquet_tables(file: Path) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(file) as parquet:
            if not parquet.metadata.num_rows:
                yield parquet.read()
            yield from (pa.Table.from_batches([batch]) for batch in parquet.iter_batches())
    except OSError as error:  # else it would be taken for one of writing
        raise ValueError(str(error)) from error


def _with_valid_cells(source: Source) -> pa.Table:
    """The table with empty cells for those that Arrow cannot hand out, such as texts that are no UTF-8."""
    table = source.table
    for position, column in enumerate(table.columns):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            cells: list[Any] = []
            broken: list[int] = []
            for row, cell in enumerate(column):
                try:
                    cells.append(cell.as_py())
                except (ValueError, OverflowError):
                    cells.append(None)
                    broken.append(row)
            if not broken:
                raise
            file, row = source.places[broken[0]]
            logger.warning(
                f"'{file}': {len(broken)} cell(s) of the column '{table.column_names[position]}' cannot be read and "
                f"stay empty, the first one in row {row}: {error}."
            )
            table = table.set_column(position, table.field(position), pa.array(cells, column.type))
    return table


def _is_hub_name(path: Any) -> bool:
    if not isinstance(path, str) or Path(path).expanduser().exists() or Path(path).suffix.lower() in SUFFIXES:
        return False
    return not path.startswith(".") and _HUB_NAME.match(path) is not None


def _read_hub(name: str) -> dict[str | None, list[Source]]:
    try:
        loaded = datasets.load_dataset(name)
    except (OSError, datasets.exceptions.DatasetsError) as error:  # OSError: offline, not found, no right to read
        raise FileNotFoundError(
            f"'{name}' is no file or folder here (looked from {Path.cwd()}), and as a hub dataset it could not be "
            f"loaded: {error}. Check the path; for a hub dataset check the name, the network and HF_HUB_OFFLINE."
        ) from error
    per_split: dict[str | None, list[Source]] = {}
    for given, rows in loaded.items():
        # One split alone was not divided by its owner, so there is no division to keep.
        split = None if len(loaded) == 1 else split_name(given) or given
        places = Places([(f"{name}:{given}", range(1, len(rows) + 1))])
        per_split.setdefault(split, []).append(_from_dataset(rows, places, None, split))
    return per_split


def _from_dataset(rows: datasets.Dataset, places: Places, root: Path | None, split: str | None) -> Source:
    schema: pa.Schema = rows.data.schema
    embedded = [item.name for item in schema if _embeds_pictures(item.type)]
    table: pa.Table = rows.data.table.drop_columns(embedded).replace_schema_metadata()
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.ClassLabel):
            labels = [None if value is None else feature.int2str(value) for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(labels, pa.string()))
    return Source(table, places, root, split, rows.select_columns(embedded) if embedded else None)
