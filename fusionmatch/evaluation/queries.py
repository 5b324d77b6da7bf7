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
"""What a model found for each query of a split, kept as a Parquet file, and what follows from such files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import torch

from .intervals import Interval, Ranks, bootstrap_recalls
from .retrieval import CatalogueEmbeddings


DIRECTIONS = ("i2t", "t2i")
# What of a catalogue's rows is no property of a product that queries could be grouped by.
_NOT_KEPT = {"image", "texts", "product", "image_id", "source_row", "picture_group", "concepts"}
COLUMNS = {
    "direction": pyarrow.string(),
    "query": pyarrow.string(),
    "product": pyarrow.string(),
    "rank": pyarrow.int32(),
}


@dataclass
class QueryResults:
    """
    One row a query, pictures first.

    Args:
        table (`pyarrow.Table`):
            Columns `direction` (`i2t` for a picture among the texts, `t2i` for a text among the pictures), `query`
            (`image_id`, or the text), `product`, `rank` (of the first item of the product, from 1; 0 where there is
            none), and the catalogue's own columns (`category`, ...): those of the picture, or of the first picture of
            the text's product.
    """

    table: pyarrow.Table

    @classmethod
    def from_embeddings(cls, found: CatalogueEmbeddings, dataset: datasets.Dataset) -> "QueryResults":
        """The results of a split that was embedded by [`~fusionmatch.evaluation.retrieval.embed_catalogue`]."""
        first = {product: row for row, product in reversed(list(enumerate(found.image_products)))}
        rows = [*range(len(found.image_products)), *(first[product] for product in found.text_products)]
        columns = {
            "direction": ["i2t"] * len(found.image_products) + ["t2i"] * len(found.text_products),
            "query": [str(name) for name in dataset["image_id"]] + found.texts,
            "product": [str(product) for product in (*found.image_products, *found.text_products)],
            "rank": torch.cat([found.ranks(direction) for direction in DIRECTIONS]).tolist(),
        }
        table = pyarrow.table({name: pyarrow.array(columns[name], kind) for name, kind in COLUMNS.items()})
        for name, feature in dataset.features.items():
            if name in _NOT_KEPT or not isinstance(feature, datasets.Value):
                continue
            values = list(dataset[name])
            table = table.append_column(name, pyarrow.array([values[row] for row in rows]))
        return cls(table)

    def save(self, path: str | Path) -> Path:
        """Writes the Parquet file."""
        pyarrow.parquet.write_table(self.table, path)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "QueryResults":
        """
        Reads such a file.

        Raises:
            `FileNotFoundError`: there is none.
            `ValueError`: it is no Parquet file, or one of something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file of query results at '{path}' (looked from {Path.cwd()}).")
        try:
            table = pyarrow.parquet.read_table(path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"'{path}' is no Parquet file: {str(error).splitlines()[0]}") from error
        missing = [name for name in COLUMNS if name not in table.column_names]
        if missing:
            raise ValueError(
                f"'{path}' holds no query results: the columns {missing} are missing. `fusionmatch evaluate "
                "--queries_file` and every training write such files."
            )
        return cls(table)

    @property
    def ranks(self) -> Ranks:
        """Ranks of the picture and of the text queries."""
        return torch.tensor(self.side("i2t", "rank")), torch.tensor(self.side("t2i", "rank"))

    def side(self, direction: str, column: str) -> list[Any]:
        """A column of the queries of one direction."""
        chosen = pyarrow.compute.equal(self.table["direction"], direction)
        return self.table[column].filter(chosen).to_pylist()


def recall_intervals(
    runs: Sequence[QueryResults], baseline: Sequence[QueryResults] | None = None, **kwargs: Any
) -> dict[str, Interval]:
    """
    Recalls of one or several runs (seeds) on the same queries, or their difference to those of a baseline.

    Args:
        runs, baseline (`Sequence[QueryResults]`):
            As in [`~fusionmatch.evaluation.intervals.bootstrap_recalls`].
        kwargs:
            Passed on to it.

    Raises:
        `ValueError`: the runs do not have the same queries in the same order.
    """
    keys = ["direction", "query", "product"]
    first = runs[0].table.select(keys)
    if any(not first.equals(run.table.select(keys)) for run in (*runs, *(baseline or ()))):
        raise ValueError(
            "The runs were measured on different queries, so they cannot be compared query by query. Measure both on "
            "the same split of the same catalogue."
        )
    products = runs[0].side("i2t", "product"), runs[0].side("t2i", "product")
    ranks = None if baseline is None else [run.ranks for run in baseline]
    return bootstrap_recalls([run.ranks for run in runs], *products, baseline=ranks, **kwargs)
