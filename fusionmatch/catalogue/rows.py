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
"""From the tables to one row per picture: texts joined, pictures checked, products named, ids made unique."""

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets.table import Table, concat_tables

from .columns import Columns, check_column, choose_columns, is_empty, join_texts
from .duplicates import group_pictures
from .named import Download, NamedPictures, find_pictures
from .pictures import is_url
from .quarantine import QuarantinedRow
from .sources import Source
from .splits import SPLITS, split_name
from .tables import chunks, codes_of, count_by_appearance, keep, spans, take


logger = logging.getLogger(__name__)

NO_TEXT = "text is empty or a placeholder"
REPEATED_ROW = "row repeats an earlier one whole"
_OWN_COLUMNS = ("image", "texts", "product", "image_id", "source_row", "picture_group", "concepts")


@dataclass
class Pictures:
    """
    The `n` pictures kept, each a row of the dataset to be, in the order of the sources. Rows of all tables are counted
    on from one to the next.

    Args:
        source (`np.ndarray`): (n,), which source it comes from.
        row (`np.ndarray`): (n,), row of that source's table, from 0.
        entry (`np.ndarray`): (n,), which entry of that source; of embedded pictures the row.
        seen (`np.ndarray`): (n,), which of the different pictures it is; counts in the next two.
        paths (`list[str | None]`): File of each different picture; `None` where it is embedded.
        groups (`list[str]`): What names each different picture and its copies.
        splits (`list[str | None]`): (n,), the user's own split.
        image_ids (`pa.ChunkedArray`): (n,), its unique id.
        products (`pa.ChunkedArray`): Product of each row of all tables.
        texts (`pa.ChunkedArray`): Texts of each row of all tables.
        text_rows (`np.ndarray`): Rows of all tables that have texts of the first picture, of the second, and so on.
        text_ends (`np.ndarray`): (n + 1,), where those of a picture begin, and end.
    """

    source: np.ndarray
    row: np.ndarray
    entry: np.ndarray
    seen: np.ndarray
    paths: list[str | None]
    groups: list[str]
    splits: list[str | None]
    image_ids: pa.ChunkedArray
    products: pa.ChunkedArray
    texts: pa.ChunkedArray
    text_rows: np.ndarray
    text_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def describe(self, picked: np.ndarray) -> dict[str, pa.Array | pa.ChunkedArray]:
        """Texts, product, id and group of some pictures."""
        begins, ends = self.text_ends[picked], self.text_ends[picked + 1]
        rows = [self.text_rows[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        texts = take(self.texts, np.concatenate([np.empty(0, np.int64), *rows]))
        if len(texts) > len(rows):
            said = iter(texts.to_pylist())
            own = [list(dict.fromkeys(text for _ in some for text in next(said))) for some in rows]
            texts = pa.array(own, pa.list_(pa.string()))
        return {
            "texts": texts,
            "product": take(self.products, self.text_rows[begins]),
            "image_id": take(self.image_ids, picked),
            "picture_group": pa.array([self.groups[one] for one in self.seen[picked].tolist()], pa.string()),
        }


def choose_catalogue_columns(sources: Sequence[Source], **named: Any) -> Columns:
    """
    Chooses the columns by all tables together and checks that every table has the ones it needs.

    Raises:
        `ValueError`: As [`choose_columns`], and when embedded pictures and picture files are mixed in one row.
    """
    tables = [source.table for source in sources]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:  # a column of different kinds; the first table then speaks for all
        table = tables[0]
    embedded = list(dict.fromkeys(name for s in sources if s.embedded is not None for name in s.embedded.column_names))
    columns = choose_columns(table, embedded, **named)
    for source in sources:
        for argument, name in (("image_column", columns.image), *(("caption_column", text) for text in columns.texts)):
            check_column(name, source.column_names, f"{source.name}: {argument}")
    further = columns.additional_images
    if further is not None and (further in embedded) != (columns.image in embedded):
        if "additional_images" not in columns.guessed:
            raise ValueError(
                f"The columns '{columns.image}' and '{further}' must both embed pictures or both name files."
            )
        logger.warning(
            f"The pictures of the column '{further}' are left out: one of it and '{columns.image}' embeds pictures, "
            "the other names files. Embed both, or name files in both."
        )
        columns = dataclasses.replace(columns, additional_images=None)
    return columns


def collect_pictures(
    sources: Sequence[Source],
    columns: Columns,
    image_root: Path | None,
    separator: str | None,
    download: Download | None = None,
) -> tuple[Pictures, list[QuarantinedRow], list[QuarantinedRow], list[str]]:
    """
    Checks texts and pictures and gives the usable pictures in the order of the sources, the faults, what is worth a
    look in pictures that can be used, and the names of the user's own splits, those without a usable picture among
    them.

    Rows that name the same picture of the same product become one picture with the texts of all.

    Args:
        sources (`Sequence[Source]`): The tables. Those that embed pictures have them laid out in `pictures` after.
        columns (`Columns`): The columns to read.
        image_root (`Path`, *optional*): Folder the pictures may lie in besides the table's own.
        separator (`str`, *optional*): What joins several pictures in one cell; guessed when not given.
        download (`Callable`, *optional*): Gives for URLs the files that they were downloaded to; without it they are
            quarantined.

    Raises:
        `ValueError`: A value of the split column is no split.
    """
    roots = [image_root] if image_root is not None else list({s.root for s in sources if s.root is not None})
    id_root = os.path.commonpath(roots).rstrip(os.sep) + os.sep if roots else ""
    several_files = len({name for source in sources for name in source.places.files}) > 1
    faults: list[QuarantinedRow] = []
    split_names: dict[str | None, int] = {}
    for source in sources:
        if source.split is not None:
            split_names.setdefault(source.split, len(split_names))
    texts: list[Table] = []
    products: list[Table] = []
    named: list[NamedPictures] = []
    different: dict[str, int] = {}
    paths: list[str | None] = []
    hashes: list[bytes] = []
    # Of each time that a usable picture is named: the source, the place in it, the row of all tables, the picture and
    # the split.
    usable: list[np.ndarray] = [np.empty((5, 0), np.int64)]
    start = 0
    for number, source in enumerate(sources):
        said, text_faults = _compose_texts(source, columns)
        own = find_pictures(source, columns, image_root, separator, download)
        faults += sorted(text_faults + own.quarantine(source, columns), key=lambda fault: (fault.source, fault.row))
        texts += said
        named.append(own)
        products += keep(_own_products(source, columns, own, id_root))
        splits = _own_splits(source, columns, split_names)
        places = np.flatnonzero(own.usable() & _has_text(said)[own.rows])
        rows, entries = own.rows[places], own.entries[places]
        seen = np.full(len(own.values), -1)
        for entry in np.unique(entries).tolist():
            seen[entry] = different.setdefault(own.key(entry), len(different))
            if seen[entry] == len(paths):
                paths.append(own.paths[entry])
                hashes.append(own.hashes[entry])
        usable.append(np.stack([np.full(len(places), number), places, start + rows, seen[entries], splits[rows]]))
        start += len(source.places)
    all_products = _column_of(products, "product", pa.string())
    source_of, place, row, seen, split = np.concatenate(usable, axis=1)
    picture = count_by_appearance(seen, split, codes_of(all_products)[0][row])
    # The first time that each is named.
    first = np.flatnonzero(np.diff(np.maximum.accumulate(picture), prepend=-1))
    entry, own_row = np.empty_like(first), np.empty_like(first)
    notes: list[QuarantinedRow] = []
    ids: list[pa.Array] = []
    for number, (source, own) in enumerate(zip(sources, named, strict=True)):
        mine = source_of[first] == number
        at = place[first[mine]]
        entry[mine], own_row[mine] = own.entries[at], own.rows[at]
        for here in at[np.isin(own.entries[at], list(own.notes))].tolist():
            notes += [own.note(source, columns, here, note) for note in own.notes[int(own.entries[here])]]
        ids += _image_ids(source, columns, own, at, id_root, several_files)
    notes += _repeated_rows(sources, row, picture, row[first])
    found = Pictures(
        source=source_of[first],
        row=own_row,
        entry=entry,
        seen=seen[first],
        paths=paths,
        groups=_name_groups(hashes, seen[first]),
        splits=np.array(list(split_names), object)[split[first]].tolist(),
        image_ids=_unique(pa.chunked_array(ids, pa.string())),
        products=all_products,
        texts=_column_of(texts, "texts", pa.list_(pa.string())),
        text_rows=row[np.argsort(picture, kind="stable")],
        text_ends=np.concatenate([[0], np.cumsum(np.bincount(picture))]),
    )
    return found, faults, notes, [name for name in split_names if name is not None]


def _repeated_rows(
    sources: Sequence[Source], row: np.ndarray, picture: np.ndarray, first: np.ndarray
) -> Iterator[QuarantinedRow]:
    """Rows that say cell by cell what an earlier one says, whose picture `first` they name again."""
    later, at = np.unique(row, return_index=True)
    shared = np.bincount(picture[at], minlength=len(first)) > 1
    rows, pictures = later[shared[picture[at]]], picture[at][shared[picture[at]]]
    start = 0
    for source in sources:
        mine = (rows >= start) & (rows < start + len(source.places))
        own, shown = rows[mine] - start, pictures[mine].tolist()
        start += len(source.places)
        said: dict[tuple[int, int], int] = {}
        for span in spans(len(own)):
            cells = [take(column, own[span]).to_pylist() for column in source.table.columns]
            for number, one, *row_cells in zip(own[span].tolist(), shown[span], *cells, strict=True):
                before = said.setdefault((one, xxhash.xxh3_64_intdigest(repr(row_cells).encode())), number)
                if before != number:
                    (file, place), (_, earlier) = source.places[number], source.places[before]
                    yield QuarantinedRow(file, place, REPEATED_ROW, detail=f"row {earlier}")


def _column_of(tables: Sequence[Table], name: str, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([part for table in tables for part in table.table[name].chunks], kind)


def _name_groups(hashes: Sequence[bytes], seen: np.ndarray) -> list[str]:
    """What names each different picture and its copies: what is seen in the first one, the same in any catalogue."""
    order = pd.unique(seen).tolist()
    names = [""] * len(hashes)
    for one, first in zip(order, group_pictures([hashes[one] for one in order]), strict=True):
        names[one] = names[order[first]] or xxhash.xxh3_64_hexdigest(hashes[one])
    return names


def _compose_texts(source: Source, columns: Columns) -> tuple[list[Table], list[QuarantinedRow]]:
    label = " + ".join(columns.texts)
    faults: list[QuarantinedRow] = []
    places = iter(source.places)

    def tables() -> Iterator[pa.Table]:
        for chunk in chunks(source.table, columns.texts):
            texts = []
            for row, (file, number) in zip(chunk, places, strict=False):
                said, missing = _row_texts(row)
                texts.append(said)
                if missing:
                    value = " | ".join(str(cell) for cell in row)
                    faults.extend([QuarantinedRow(file, number, NO_TEXT, field=label, value=value)] * missing)
            yield pa.table({"texts": pa.array(texts, pa.list_(pa.string()))})

    return keep(tables()), faults


def _row_texts(row: Sequence[Any]) -> tuple[list[str], int]:
    """The texts of a row's cells, and how many are missing."""
    single = [cell for cell in row if not isinstance(cell, list)]
    entries = [entry for cell in row if isinstance(cell, list) for entry in cell]
    if len(row) == 1:
        joined = ["" if is_empty(cell) else str(cell).strip() for cell in single]
    else:
        joined = [join_texts(single)] if single else []
    entries = joined + ["" if is_empty(entry) else str(entry).strip() for entry in entries]
    said = [entry for entry in entries if entry]
    # An empty entry beside others, such as the third of five captions, is reported and the row kept. A joined text
    # that is empty beside a list is no fault: the list is the text.
    missing = len(entries) - len(said) if said and not single else int(not said)
    return list(dict.fromkeys(said)), missing


def _has_text(texts: Sequence[Table]) -> np.ndarray:
    counts = [pc.list_value_length(part).to_numpy() for table in texts for part in table.table["texts"].chunks]
    return np.concatenate([np.empty(0, np.int64), *counts]) > 0


def _own_products(source: Source, columns: Columns, named: NamedPictures, id_root: str) -> Iterator[pa.Table]:
    first = np.full(len(source.places), -1)
    rows, at = np.unique(named.rows, return_index=True)
    first[rows] = named.entries[at]
    entries, places = iter(first.tolist()), iter(source.places)
    column = columns.group if columns.group is not None else columns.image_id
    for chunk in chunks(source.table, [column]):
        products = []
        for (group,), entry, place in zip(chunk, entries, places, strict=False):
            if not is_empty(group):
                products.append(str(group).strip())
            elif entry >= 0 and named.paths[entry] is not None:
                products.append(_file_name(named, entry, id_root))
            elif entry >= 0 and named.digests is not None and named.digests[entry]:
                # By its bytes, not its row or stored name: rows move, and exports call every picture "image.jpg".
                products.append(f"picture-{named.digests[entry][:16]}")
            else:
                products.append(f"{place[0]}/row-{place[1]}")
        yield pa.table({"product": pa.array(products, pa.string())})


def _own_splits(source: Source, columns: Columns, names: dict[str | None, int]) -> np.ndarray:
    """The number of each row's own split; `names` takes those that are new."""
    if columns.split is None:
        return np.full(len(source.places), names.setdefault(source.split, len(names)))
    if source.split is not None:
        raise ValueError(
            "split_column cannot be used where the catalogue is given split by split; leave one of them out."
        )
    codes = []
    unknown: dict[str, int] = {}
    for chunk in chunks(source.table, [columns.split]):
        cells = ["" if cell is None else str(cell) for (cell,) in chunk]
        splits = {cell: split_name(cell) for cell in cells}
        for row, cell in enumerate(cells, start=len(codes)):
            if splits[cell] is None:
                unknown.setdefault(cell, row)
        codes += [names.setdefault(splits[cell], len(names)) for cell in cells]
    if unknown:
        file, row = source.places[unknown[min(unknown)]]
        raise ValueError(
            f"split_column '{columns.split}' holds {', '.join(map(repr, sorted(unknown)[:5]))} (first in {file}, row "
            f"{row}); allowed are {', '.join(SPLITS)}, and val, valid, dev, eval."
        )
    return np.array(codes, np.int64)


def _image_ids(
    source: Source, columns: Columns, named: NamedPictures, at: np.ndarray, id_root: str, several_files: bool
) -> Iterator[pa.Array]:
    """The ids of pictures, those that are named in the places `at` of a source; not unique yet."""
    has_ids = columns.image_id is not None and columns.image_id in source.table.column_names
    for span in spans(len(at)):
        rows, entries = named.rows[at[span]], named.entries[at[span]]
        cells = take(source.table[columns.image_id], rows).to_pylist() if has_ids else [None] * len(rows)
        ids = []
        for row, entry, cell in zip(rows.tolist(), entries.tolist(), cells, strict=True):
            if named.paths[entry] is not None:
                ids.append(_file_name(named, entry, id_root))
            elif not is_empty(cell):
                ids.append(str(cell).strip())
            elif value := named.values[entry]:
                # A hub dataset may hold the path of a file in this machine's cache.
                ids.append(value if source.root is not None else Path(value).name)
            else:
                file, number = source.places[row]
                ids.append(f"{file}/row-{number}" if several_files else f"row-{number}")
        yield pa.array(ids, pa.string())


def _file_name(named: NamedPictures, entry: int, root: str) -> str:
    if is_url(named.values[entry]):  # its file is called by a digest
        return str(named.values[entry])
    return str(named.paths[entry]).removeprefix(root).replace(os.sep, "/")


def _unique(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The ids with `#2`, `#3`, ... behind those that are there already."""
    codes, different = codes_of(ids)
    again = pd.Series(codes).duplicated().to_numpy()
    if not again.any():
        return ids
    taken = set(different.filter(pc.match_substring(different, "#")).to_pylist())
    counts: dict[str, int] = {}

    def rename(own: str) -> str:
        while True:
            counts[own] = counts.get(own, 1) + 1
            if f"{own}#{counts[own]}" not in taken:
                return f"{own}#{counts[own]}"

    parts, start = [], 0
    for part in ids.chunks:
        repeated = again[start : start + len(part)]
        start += len(part)
        names = [rename(own) if more else own for own, more in zip(part.to_pylist(), repeated.tolist(), strict=True)]
        parts.append(pa.array(names, pa.string()))
    return pa.chunked_array(parts, pa.string())


def build_dataset(sources: Sequence[Source], columns: Columns, pictures: Pictures) -> datasets.Dataset:
    """
    Lays the pictures out as one dataset, in their order; embedded pictures stay where they are, memory-mapped.

    Args:
        sources (`Sequence[Source]`): The tables, as [`collect_pictures`] left them.
        columns (`Columns`): The columns read.
        pictures (`Pictures`): What to lay out.
    """
    extras = _extra_columns(sources, columns)
    parts = []
    for number, source in enumerate(sources):
        kept = np.flatnonzero(pictures.source == number)
        if not len(kept):
            continue
        if source.pictures is None:
            parts.append(_as_dataset(_describe(source, pictures, kept, extras)))
            continue
        # Beside every embedded picture, used or not, so that the bytes are neither copied nor moved.
        beside = np.full(len(source.pictures), -1)
        beside[pictures.entry[kept]] = kept
        described = _as_dataset(_describe(source, pictures, beside, extras))
        part = datasets.concatenate_datasets([source.pictures, described], info=datasets.DatasetInfo(), axis=1)
        parts.append(part if len(kept) == len(beside) else part.select(pictures.entry[kept]))
    return datasets.concatenate_datasets(parts, info=datasets.DatasetInfo()) if len(parts) > 1 else parts[0]


def _as_dataset(tables: Iterator[pa.Table]) -> datasets.Dataset:
    table = concat_tables(keep(tables, lasting=True))
    features = datasets.Features.from_arrow_schema(table.schema)
    if "image" in features:
        features["image"] = datasets.Image()
    # By itself the class would pickle the whole table to tell it from others, which doubles the memory.
    digest = xxhash.xxh3_64(str(table.schema).encode())
    for batch in table.to_batches(max_chunksize=10_000):
        digest.update(batch.serialize())
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features), fingerprint=digest.hexdigest())


def _describe(
    source: Source, pictures: Pictures, picked: np.ndarray, extras: dict[str, tuple[str, pa.DataType]]
) -> Iterator[pa.Table]:
    """Those pictures, a chunk at a time; -1 gives a row of nothing."""
    held = set(source.table.column_names)
    numbers = source.places.numbers()
    for span in spans(len(picked)):
        there = picked[span] >= 0
        kept = picked[span][there]
        described: dict[str, pa.Array | pa.ChunkedArray] = {}
        if source.pictures is None:
            paths = pa.array([pictures.paths[one] for one in pictures.seen[kept].tolist()], pa.string())
            described["image"] = pa.StructArray.from_arrays(
                [pa.nulls(len(kept), pa.binary()), paths], ["bytes", "path"]
            )
        own = pictures.describe(kept)
        described |= {name: own[name] for name in ("texts", "product", "image_id")}
        rows = pictures.row[kept]
        described |= {"source_row": pa.array(numbers[rows]), "picture_group": own["picture_group"]}
        for name, (target, kind) in extras.items():
            if name in held:
                described[target] = take(source.table[name], rows).cast(kind)
            else:
                described[target] = pa.nulls(len(kept), kind)
        table = pa.table(described)
        yield table if there.all() else table.take(pa.array(np.cumsum(there) - 1, mask=~there))


def _extra_columns(sources: Sequence[Source], columns: Columns) -> dict[str, tuple[str, pa.DataType]]:
    """The source's other columns: name to (name in the dataset, type)."""
    carried = {columns.image, columns.additional_images, columns.group, columns.split}
    if len(columns.texts) == 1:
        carried.add(columns.texts[0])
    if all(source.pictures is not None for source in sources):
        carried.add(columns.image_id)
    kinds: dict[str, set[pa.DataType]] = {}
    for item in (item for source in sources for item in source.table.schema if item.name not in carried):
        kind = item.type.value_type if pa.types.is_dictionary(item.type) else item.type
        kinds.setdefault(item.name, set()).update([] if pa.types.is_null(kind) else [kind])
    taken = {*_OWN_COLUMNS, *kinds}
    extras = {}
    for name, found in kinds.items():
        if any(pa.types.is_nested(kind) for kind in found):
            continue
        target = name.replace("\0", "")  # Arrow cuts a name off there
        while target in _OWN_COLUMNS or (target != name and target in taken):
            target += "_source"
        taken.add(target)
        extras[name] = (target, found.pop() if len(found) == 1 else pa.string())
    return extras
