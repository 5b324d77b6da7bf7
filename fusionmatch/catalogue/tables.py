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
"""Tables of any length in little memory: read by the chunk, kept on disk where they are long."""

import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, TypeVar, overload

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from datasets.fingerprint import get_temporary_cache_files_directory
from datasets.table import InMemoryTable, MemoryMappedTable, Table


# Rows whose cells are Python's own at a time; they take several times the memory of Arrow's. No more rows than these
# are kept in memory either.
CHUNK = 50_000

T = TypeVar("T")


class Places(Sequence[tuple[str, int]]):
    """
    File name and 1-based data row of each row of a table, without an object for each.

    Args:
        parts (`Iterable[tuple[str, Sequence[int]]]`): A file's name and the data rows it gives, for each file in turn.
    """

    def __init__(self, parts: Iterable[tuple[str, Sequence[int]]]) -> None:
        self.parts = [(name, rows) for name, rows in parts if len(rows)]
        self._ends = list(accumulate(len(rows) for _, rows in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, index: slice) -> "Places": ...
    def __getitem__(self, index: int | slice) -> "tuple[str, int] | Places":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"Rows are cut in one piece, got a step of {step}.")
            begins = [end - len(rows) for end, (_, rows) in zip(self._ends, self.parts, strict=True)]
            cuts = zip(begins, self.parts, strict=True)
            return Places((name, rows[max(start - begin, 0) : max(stop - begin, 0)]) for begin, (name, rows) in cuts)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} rows, got row {index}.")
        part = bisect_right(self._ends, index)
        name, rows = self.parts[part]
        return name, int(rows[index - self._ends[part]])

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((name, int(row)) for name, rows in self.parts for row in rows)

    @property
    def files(self) -> list[str]:
        """The names of the files, those that give rows."""
        return [name for name, _ in self.parts]

    def numbers(self) -> np.ndarray:
        """The data rows alone, (length,) of int64."""
        return np.concatenate([np.empty(0, np.int64), *(np.asarray(rows, np.int64) for _, rows in self.parts)])


def in_chunks(rows: Iterable[T]) -> Iterator[list[T]]:
    """The rows a chunk at a time; `itertools.batched` of Python 3.12."""
    read = iter(rows)
    return iter(lambda: list(islice(read, CHUNK)), [])


def spans(length: int) -> Iterator[slice]:
    """What cuts so many rows into chunks."""
    return (slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK))


def chunks(table: pa.Table, names: Sequence[str | None]) -> Iterator[list[tuple[Any, ...]]]:
    """
    The rows of some columns as Python's own, a chunk of rows at a time.

    Args:
        table (`pa.Table`): Where they stand.
        names (`Sequence[str | None]`): Columns; a row has `None` for one that the table lacks.
    """
    for span in spans(len(table)):
        part = table[span]
        columns = [part[name].to_pylist() if name in part.column_names else [None] * len(part) for name in names]
        yield list(zip(*columns, strict=True)) if columns else [()] * len(part)


def column(dataset: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """A column of a dataset as Arrow has it."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def codes_of(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """
    Numbers the different cells of a column in the order in which they appear first.

    Returns:
        `tuple[np.ndarray, pa.Array]`: (length,), the number of each cell, -1 for one that is empty; and the cells.
    """
    encoded = column.dictionary_encode().unify_dictionaries()
    codes = [part.indices.fill_null(-1).to_numpy() for part in encoded.chunks]
    cells = encoded.chunk(0).dictionary if codes else pa.array([], column.type)
    return np.concatenate([np.empty(0, np.int64), *codes]), cells


def count_by_appearance(*columns: np.ndarray) -> np.ndarray:
    """Numbers the different rows of some columns of numbers from -1 on, in the order in which they appear first."""
    codes = np.zeros(len(columns[0]), np.int64)
    for numbers in columns:
        codes = pd.factorize(codes * (int(numbers.max(initial=0)) + 2) + numbers + 1)[0]
    return codes


def take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """Some cells of a column. Arrow would copy all of it for that, so it is cut to what lies between them first."""
    first, last = int(rows.min(initial=len(column))), int(rows.max(initial=-1))
    return column.slice(first, max(last + 1 - first, 0)).take(pa.array(rows - first))


class KeepError(OSError):
    """A long table cannot be kept on disk."""


def keep(tables: Iterable[pa.Table], lasting: bool = False) -> list[Table]:
    """
    Keeps tables that follow each other: in memory where they are short together, else written, those of one schema
    into one file, and mapped into memory from there.

    Args:
        tables (`Iterable[pa.Table]`): The tables; each is let go before the next is asked for.
        lasting (`bool`, *optional*, defaults to `False`):
            Whether the files stay until the process ends, so that other processes can open them. Else their place on
            the disk is free as soon as nothing is left of the tables, where the system can do that.

    Raises:
        [`KeepError`]: There is no folder for temporary files, or no room in it.
    """
    rest = iter(tables)
    held: list[pa.Table] = []
    for table in rest:
        held.append(table)
        if sum(map(len, held)) > CHUNK:
            break
    else:
        return [InMemoryTable(table) for table in held]
    files: list[Path] = []
    try:
        folder = get_temporary_cache_files_directory()
        with ExitStack() as stack:
            schema, writer = None, None
            for table in chain(held, rest):
                if table.schema != schema:
                    stack.close()
                    handle = stack.enter_context(
                        tempfile.NamedTemporaryFile(dir=folder, suffix=".arrow", delete=False)
                    )
                    files.append(Path(handle.name))
                    schema = table.schema
                    writer = stack.enter_context(pa.ipc.new_stream(handle, schema))
                writer.write_table(table)
    except OSError as error:
        for file in files:
            file.unlink(missing_ok=True)
        raise KeepError(
            f"A table of more than {CHUNK:,} rows goes to the folder for temporary files, which failed: {error}. "
            "Set the environment variable TMPDIR to a folder that can be written to and has room."
        ) from error
    kept = [MemoryMappedTable.from_file(str(file)) for file in files]
    if not lasting:
        for file in files:
            with suppress(PermissionError):  # Windows keeps what is open
                file.unlink()
    return kept
