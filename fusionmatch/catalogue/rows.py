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
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from .columns import Columns, check_column, choose_columns, guess_separator, is_empty, join_texts, split_cell
from .duplicates import group_pictures
from .pictures import NOT_NAMED, UNREADABLE, Checked, Found, check_files, check_stored, find_picture, is_url
from .quarantine import QuarantinedRow
from .sources import Source
from .splits import SPLITS, split_name


NO_TEXT = "text is empty or a placeholder"
Download = Callable[[Iterable[str]], dict[str, Found]]
_OWN_COLUMNS = ("image", "texts", "product", "image_id", "source_row", "picture_group", "concepts")


@dataclass(slots=True)
class Picture:
    """
    A picture kept: one row of the dataset to be.

    Args:
        source (`int`): Which source it comes from.
        row (`int`): Row of that source's table, from 0.
        position (`int`): Row of the source's embedded pictures, from 0; -1 for a file.
        path (`Path`, *optional*): File of the picture; `None` where it is embedded.
        hash (`bytes`): What is the same in a copy of it ([`~fusionmatch.catalogue.duplicates.picture_hash`]).
        product (`str`): Product it shows.
        image_id (`str`): Its unique id.
        split (`str`, *optional*): The user's own split.
        texts (`list[str]`): Its texts.
        group (`str`): What names it and its copies.
    """

    source: int
    row: int
    position: int
    path: Path | None
    hash: bytes
    product: str
    image_id: str
    split: str | None
    texts: list[str] = field(default_factory=list)
    group: str = ""


_UNCHECKED = Checked("")


class _Candidate(NamedTuple):
    row: int
    column: str
    value: str | None
    position: int
    path: Path | None
    checked: Checked


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
        columns = dataclasses.replace(columns, additional_images=None)
    return columns


def collect_pictures(
    sources: Sequence[Source],
    columns: Columns,
    image_root: Path | None,
    separator: str | None,
    download: Download | None = None,
) -> tuple[list[Picture], list[QuarantinedRow], list[QuarantinedRow], list[str]]:
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
    pictures: dict[tuple[Any, ...], Picture] = {}
    faults: list[QuarantinedRow] = []
    notes: list[QuarantinedRow] = []
    ids: dict[str, int] = {}
    split_names: dict[str, None] = {source.split: None for source in sources if source.split is not None}
    roots = [image_root] if image_root is not None else list({s.root for s in sources if s.root is not None})
    id_root = os.path.commonpath(roots).rstrip(os.sep) + os.sep if roots else ""
    several_files = len({place[0] for source in sources for place in source.places}) > 1
    for number, source in enumerate(sources):
        texts, text_faults = _compose_texts(source, columns)
        candidates, picture_faults = _find_candidates(source, columns, image_root, separator, download)
        faults += sorted(text_faults + picture_faults, key=lambda fault: (fault.source, fault.row))
        image_ids = _column(source, columns.image_id)
        products = _own_products(source, columns, image_ids, candidates, id_root)
        splits = _own_splits(source, columns)
        split_names.update(dict.fromkeys(split for split in splits if split is not None))
        for candidate in candidates:
            row = candidate.row
            if candidate.checked.reason is not None or not texts[row]:
                continue
            key = (splits[row], candidate.path or candidate.checked.digest, products[row])
            picture = pictures.get(key)
            if picture is None:
                file, source_row = source.places[row]
                if candidate.path is not None:
                    image_id = _file_name(candidate, id_root)
                elif not is_empty(image_ids[row]):
                    image_id = str(image_ids[row]).strip()
                elif candidate.value:
                    # A hub dataset may hold the path of a file in this machine's cache.
                    image_id = candidate.value if source.root is not None else Path(candidate.value).name
                else:
                    image_id = f"{file}/row-{source_row}" if several_files else f"row-{source_row}"
                picture = pictures[key] = Picture(
                    source=number,
                    row=row,
                    position=candidate.position,
                    path=candidate.path,
                    hash=candidate.checked.hash,
                    product=products[row],
                    image_id=_unique(image_id, ids),
                    split=splits[row],
                )
                notes += [_note(source, candidate, note) for note in candidate.checked.notes]
            picture.texts += texts[row]
    found = list(pictures.values())
    groups = group_pictures([picture.hash for picture in found])
    # By what is seen in it, so that it is the same in another catalogue.
    names = {first: xxhash.xxh3_64_hexdigest(found[first].hash) for first in set(groups)}
    for picture, first in zip(found, groups, strict=True):
        picture.texts = list(dict.fromkeys(picture.texts))
        picture.group = names[first]
    return found, faults, notes, list(split_names)


def _column(source: Source, name: str | None) -> list[Any]:
    if name is None or name not in source.table.column_names:
        return [None] * len(source.places)
    return source.table[name].to_pylist()


def _compose_texts(source: Source, columns: Columns) -> tuple[list[list[str]], list[QuarantinedRow]]:
    cells = [_column(source, name) for name in columns.texts]
    label = " + ".join(columns.texts)
    texts: list[list[str]] = []
    faults = []
    for (file, number), row in zip(source.places, zip(*cells, strict=True), strict=True):
        single = [cell for cell in row if not isinstance(cell, list)]
        entries = [entry for cell in row if isinstance(cell, list) for entry in cell]
        if len(columns.texts) == 1:
            joined = ["" if is_empty(cell) else str(cell).strip() for cell in single]
        else:
            joined = [join_texts(single)] if single else []
        entries = joined + ["" if is_empty(entry) else str(entry).strip() for entry in entries]
        said = [entry for entry in entries if entry]
        texts.append(list(dict.fromkeys(said)))
        # An empty entry beside others, such as the third of five captions, is reported and the row kept. A joined
        # text that is empty beside a list is no fault: the list is the text.
        missing = len(entries) - len(said) if said and not single else int(not said)
        if missing:
            value = " | ".join(str(cell) for cell in row)
            faults.extend(QuarantinedRow(file, number, NO_TEXT, field=label, value=value) for _ in range(missing))
    return texts, faults


def _find_candidates(
    source: Source, columns: Columns, image_root: Path | None, separator: str | None, download: Download | None
) -> tuple[list[_Candidate], list[QuarantinedRow]]:
    if source.embedded is not None and columns.image in source.embedded.column_names:
        names = _stored_paths(source, columns.image)
        if names is None:
            return _embedded_candidates(source, columns)
        more: list[Any] = [None] * len(names)
    else:
        names, more = _column(source, columns.image), _column(source, columns.additional_images)
    folders = [folder for folder in (image_root, source.root) if folder is not None]
    if columns.additional_images is None:
        first_separator, more_separator = separator or guess_separator(names), None
    else:
        first_separator, more_separator = None, separator or guess_separator(more)
    candidates: list[_Candidate] = []
    faults = []
    places: dict[str, Found] = {}
    for row, (cell, others) in enumerate(zip(names, more, strict=True)):
        entries = [(columns.image, entry) for entry in split_cell(cell, first_separator)]
        entries += [(str(columns.additional_images), entry) for entry in split_cell(others, more_separator)]
        if not entries:
            value = None if cell is None else str(cell)
            faults.append(QuarantinedRow(*source.places[row], NOT_NAMED, field=columns.image, value=value))
        for column, entry in entries:
            if entry not in places:
                places[entry] = find_picture(entry, folders)
            candidates.append(_Candidate(row, column, entry, -1, None, _UNCHECKED))
    if download is not None:
        places |= download([entry for entry in places if is_url(entry)])
    checked = check_files(place.path for place in places.values() if place.path is not None and place.reason is None)
    for position, item in enumerate(candidates):
        path, reason, detail = places[item.value]
        check = checked[path] if reason is None else Checked("", reason, detail)
        if check.reason == UNREADABLE and is_url(item.value):
            path.unlink(missing_ok=True)  # what is no picture today is asked for again next time
            path = None
        candidates[position] = item._replace(path=path, checked=check)
    return candidates, faults + _candidate_faults(source, candidates)


def _candidate_faults(source: Source, candidates: Iterable[_Candidate]) -> list[QuarantinedRow]:
    return [_note(source, item, item.checked.reason) for item in candidates if item.checked.reason is not None]


def _note(source: Source, candidate: _Candidate, reason: str) -> QuarantinedRow:
    return QuarantinedRow(
        *source.places[candidate.row],
        reason,
        field=candidate.column,
        value=candidate.value,
        path=str(candidate.path) if candidate.path is not None else None,
        detail=candidate.checked.detail,
    )


def _stored_paths(source: Source, name: str) -> list[str | None] | None:
    # Parquet written without embedding keeps the struct of bytes and path with no bytes in it.
    column = source.embedded.data[name]
    if source.root is None or not pa.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return None
    if pc.struct_field(column, "bytes").null_count < len(column):
        return None
    return pc.struct_field(column, "path").to_pylist()


def _embedded_candidates(source: Source, columns: Columns) -> tuple[list[_Candidate], list[QuarantinedRow]]:
    names = [columns.image] + ([columns.additional_images] if columns.additional_images else [])
    kinds = [source.embedded.data.schema.field(name).type for name in names]
    rows: Sequence[int] = range(len(source.places))
    if len(names) == 1 and not (pa.types.is_list(kinds[0]) or pa.types.is_large_list(kinds[0])):
        source.pictures = source.embedded.select_columns(names).rename_columns({names[0]: "image"})
        source.pictures = source.pictures.cast_column("image", datasets.Image())
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
        rows = list(source.pictures["row"])
        source.pictures = source.pictures.select_columns(["image"])
    paths = pc.struct_field(source.pictures.data["image"], "path").to_pylist()
    checked = check_stored(source.pictures, follow_paths=source.root is None)
    candidates = [
        _Candidate(row, names[0], path, position, None, check)
        for position, (row, path, check) in enumerate(zip(rows, paths, checked, strict=True))
    ]
    named = set(rows)
    faults = [
        QuarantinedRow(*place, NOT_NAMED, field=names[0])
        for row, place in enumerate(source.places)
        if row not in named
    ]
    return candidates, faults + _candidate_faults(source, candidates)


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


def _own_products(
    source: Source, columns: Columns, image_ids: list[Any], candidates: Iterable[_Candidate], id_root: str
) -> list[str]:
    first: dict[int, _Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.row, candidate)
    groups = _column(source, columns.group) if columns.group is not None else image_ids
    products = []
    for row, (group, place) in enumerate(zip(groups, source.places, strict=True)):
        own = first.get(row)
        if not is_empty(group):
            products.append(str(group).strip())
        elif own is not None and own.path is not None:
            products.append(_file_name(own, id_root))
        elif own is not None and own.checked.digest:
            # By its bytes, not its row or stored name: rows move, and exports call every picture "image.jpg".
            products.append(f"picture-{own.checked.digest[:16]}")
        else:
            products.append(f"{place[0]}/row-{place[1]}")
    return products


def _own_splits(source: Source, columns: Columns) -> list[str | None]:
    if columns.split is None:
        return [source.split] * len(source.places)
    if source.split is not None:
        raise ValueError(
            "split_column cannot be used where the catalogue is given split by split; leave one of them out."
        )
    cells = ["" if cell is None else str(cell) for cell in _column(source, columns.split)]
    splits = {cell: split_name(cell) for cell in cells}
    unknown = sorted(cell for cell, split in splits.items() if split is None)
    if unknown:
        row = next(place for place, cell in zip(source.places, cells, strict=True) if cell == unknown[0])
        raise ValueError(
            f"split_column '{columns.split}' holds {', '.join(map(repr, unknown[:5]))} (first in {row[0]}, row "
            f"{row[1]}); allowed are {', '.join(SPLITS)}, and val, valid, dev, eval."
        )
    return [splits[cell] for cell in cells]


def _file_name(candidate: _Candidate, root: str) -> str:
    if is_url(candidate.value):  # its file is called by a digest
        return candidate.value
    return str(candidate.path).removeprefix(root).replace(os.sep, "/")


def _unique(image_id: str, ids: dict[str, int]) -> str:
    unique, count = image_id, ids.get(image_id, 1)
    while unique in ids:
        count += 1
        unique = f"{image_id}#{count}"
    ids[image_id] = count
    ids.setdefault(unique, 1)
    return unique


def build_dataset(sources: Sequence[Source], columns: Columns, pictures: Sequence[Picture]) -> datasets.Dataset:
    """
    Lays the pictures out as one dataset, in their order; embedded pictures stay where they are, memory-mapped.

    Args:
        sources (`Sequence[Source]`): The tables, as [`collect_pictures`] left them.
        columns (`Columns`): The columns read.
        pictures (`Sequence[Picture]`): What to lay out.
    """
    extras = _extra_columns(sources, columns)
    parts = []
    for number, source in enumerate(sources):
        kept = [picture for picture in pictures if picture.source == number]
        if not kept:
            continue
        if source.pictures is None:
            paths = pa.array([str(picture.path) for picture in kept], pa.string())
            image = pa.StructArray.from_arrays([pa.nulls(len(kept), pa.binary()), paths], ["bytes", "path"])
            table = _describe(source, kept, extras).add_column(0, "image", image)
            parts.append(_as_dataset(table))
            continue
        # Beside every embedded picture, used or not, so that the bytes are neither copied nor moved.
        beside: list[Picture | None] = [None] * len(source.pictures)
        for picture in kept:
            beside[picture.position] = picture
        described = _as_dataset(_describe(source, beside, extras))
        part = datasets.concatenate_datasets([source.pictures, described], info=datasets.DatasetInfo(), axis=1)
        parts.append(part if len(kept) == len(beside) else part.select([picture.position for picture in kept]))
    return datasets.concatenate_datasets(parts, info=datasets.DatasetInfo()) if len(parts) > 1 else parts[0]


def _as_dataset(table: pa.Table) -> datasets.Dataset:
    features = datasets.Features.from_arrow_schema(table.schema)
    if "image" in features:
        features["image"] = datasets.Image()
    # By itself the class would pickle the whole table to tell it from others, which doubles the memory.
    digest = xxhash.xxh3_64(str(table.schema).encode())
    for batch in table.to_batches(max_chunksize=10_000):
        digest.update(batch.serialize())
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features), fingerprint=digest.hexdigest())


def _describe(
    source: Source, pictures: Sequence[Picture | None], extras: dict[str, tuple[str, pa.DataType]]
) -> pa.Table:
    described: dict[str, pa.Array | pa.ChunkedArray] = {
        "texts": pa.array([p and p.texts for p in pictures], pa.list_(pa.string())),
        "product": pa.array([p and p.product for p in pictures], pa.string()),
        "image_id": pa.array([p and p.image_id for p in pictures], pa.string()),
        "source_row": pa.array([p and source.places[p.row][1] for p in pictures], pa.int64()),
        "picture_group": pa.array([p and p.group for p in pictures], pa.string()),
    }
    rows = pa.array([p and p.row for p in pictures], pa.int64())
    held = set(source.table.column_names)
    for name, (target, kind) in extras.items():
        if name in held:
            described[target] = source.table[name].take(rows).cast(kind)
        else:
            described[target] = pa.nulls(len(pictures), kind)
    return pa.table(described)


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
