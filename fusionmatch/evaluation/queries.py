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

from ..catalogue.languages import languages_of
from .intervals import Interval, Ranks, bootstrap_recalls, permutation_test
from .ranking import average_ranks
from .retrieval import CatalogueEmbeddings


DIRECTIONS = ("i2t", "t2i")
# Products below which an interval says nothing.
FEW = 5
# What of a catalogue's rows is no property of a product that queries could be grouped by.
_NOT_KEPT = {"image", "texts", "product", "image_id", "source_row", "picture_group", "concepts"}
_LENGTHS = (40, 120, 300)
COLUMNS = {
    "direction": pyarrow.string(),
    "query": pyarrow.string(),
    "product": pyarrow.string(),
    "rank": pyarrow.int32(),
    "average_precision": pyarrow.float64(),
    "ndcg@10": pyarrow.float64(),
}


@dataclass
class QueryResults:
    """
    One row a query, pictures first.

    Args:
        table (`pyarrow.Table`):
            Columns `direction` (`i2t` for a picture among the texts, `t2i` for a text among the pictures), `query`
            (`image_id`, or the text), `product`, `rank` (of the first item of the product, from 1; 0 where there is
            none), `average_precision` at R and `ndcg@10` (in [0, 1]; see
            [`~fusionmatch.evaluation.ranking.ranking_quality`]); `language` and `text_length` (of the text, or of a
            picture's first one); and the catalogue's own columns (`category`, ...): those of the picture, or of the
            first picture of the text's product.
    """

    table: pyarrow.Table

    @classmethod
    def from_embeddings(cls, found: CatalogueEmbeddings, dataset: datasets.Dataset) -> "QueryResults":
        """The results of a split that was embedded by [`~fusionmatch.evaluation.retrieval.embed_catalogue`]."""
        first = {product: row for row, product in reversed(list(enumerate(found.image_products)))}
        rows = [*range(len(found.image_products)), *(first[product] for product in found.text_products)]
        quality = [torch.cat(part) for part in zip(*(found.quality(way) for way in DIRECTIONS), strict=True)]
        # Rows made by hand may have no names.
        names = dataset["image_id"] if "image_id" in dataset.column_names else range(len(dataset))
        columns = {
            "direction": ["i2t"] * len(found.image_products) + ["t2i"] * len(found.text_products),
            "query": [str(name) for name in names] + found.texts,
            "product": [str(product) for product in (*found.image_products, *found.text_products)],
            "rank": torch.cat([found.ranks(direction) for direction in DIRECTIONS]).tolist(),
            "average_precision": quality[0].tolist(),
            "ndcg@10": quality[1].tolist(),
        }
        table = pyarrow.table({name: pyarrow.array(columns[name], kind) for name, kind in COLUMNS.items()})
        texts = [own[0] if own else "" for own in dataset["texts"]] + found.texts
        if "language" not in dataset.column_names:  # the catalogue's own says it better
            table = table.append_column("language", pyarrow.array(languages_of(texts)[0]))
        table = table.append_column("text_length", pyarrow.array([_length(text) for text in texts]))
        for name, feature in dataset.features.items():
            if name in _NOT_KEPT or not isinstance(feature, datasets.Value):
                continue
            values = list(dataset[name])
            while name in table.column_names:
                name += "_source"
            table = table.append_column(name, pyarrow.array([values[row] for row in rows]))
        return cls(table)

    @classmethod
    def from_rows(cls, rows: Sequence[dict[str, Any]]) -> "QueryResults":
        """Results that were found elsewhere, pictures first, with the columns that every file of results has."""
        return cls(pyarrow.Table.from_pylist(list(rows), schema=pyarrow.schema(COLUMNS)))

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

    @property
    def summary(self) -> dict[str, float]:
        """
        Over the queries with something to find, for `i2t` and `t2i`: `median_rank`, and means `mrr`, `map@r`,
        `ndcg@10`.
        """
        means = {}
        for direction, ranks in zip(DIRECTIONS, self.ranks, strict=True):
            asked = ranks > 0
            means |= {f"{direction}_{name}": value for name, value in average_ranks(ranks[asked]).items()}
            for name, column in (("map@r", "average_precision"), ("ndcg@10", "ndcg@10")):
                means[f"{direction}_{name}"] = torch.tensor(self.side(direction, column))[asked].mean().item()
        return means

    @property
    def num_products(self) -> int:
        """Number of different products."""
        return len(set(self.table["product"].to_pylist()))

    def side(self, direction: str, column: str) -> list[Any]:
        """A column of the queries of one direction."""
        chosen = pyarrow.compute.equal(self.table["direction"], direction)
        return self.table[column].filter(chosen).to_pylist()


def _length(text: str) -> str:
    """A text's length in words that sort a report's table."""
    for most in _LENGTHS:
        if len(text) <= most:
            return f"up to {most} characters"
    return f"over {_LENGTHS[-1]} characters"


@dataclass
class Difference(Interval):
    """
    A difference between two models on the same queries.

    Args:
        p_value (`float`):
            How often chance alone makes a difference as large, in (0, 1]; paired permutation test.
    """

    p_value: float

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no difference shown` where the interval holds 0 or the p-value is above 0.05."""
        if self.p_value > 0.05 or self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if self.value > 0 else "worse"

    def sentence(self, what: str, other: str) -> str:
        """The verdict with its numbers: *Better than before: RSUM +12.1 [+3.2, +20.4], p = 0.0040.*"""
        verdict = "No difference shown to" if "no" in self.verdict else f"{self.verdict.capitalize()} than"
        return (
            f"{verdict} {other}: {what} {self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}], p = {self.p_value:.4f}."
        )


def columns_to_divide_by(run: QueryResults, most: int = 30) -> list[str]:
    """Columns of the catalogue with texts that queries can be grouped by: at least two values, at most `most`."""
    names = [name for name in run.table.column_names if name not in COLUMNS]
    return [
        name
        for name in names
        if pyarrow.types.is_string(run.table.schema.field(name).type)
        and 2 <= len(set(run.table[name].to_pylist()) - {None, ""}) <= most
    ]


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
    ranks = None if baseline is None else [run.ranks for run in baseline]
    return bootstrap_recalls([run.ranks for run in runs], *_products(runs, baseline), baseline=ranks, **kwargs)


def compare(runs: Sequence[QueryResults], baseline: Sequence[QueryResults]) -> dict[str, Difference]:
    """
    What one model is better at than another, query by query, with a bootstrap interval and a permutation test, both
    over products.

    Args:
        runs, baseline (`Sequence[QueryResults]`):
            Results of both on the same queries, one for each training run (seed).

    Returns:
        `dict[str, Difference]`: `i2t_recall@k`, `t2i_recall@k` and their sum `rsum`, in percent.

    Raises:
        `ValueError`: as [`recall_intervals`].
    """
    found = recall_intervals(runs, baseline)
    ranks = [[run.ranks for run in part] for part in (runs, baseline)]
    p_values = permutation_test(*ranks, *_products(runs, baseline))
    return {name: Difference(each.value, each.low, each.high, p_values[name]) for name, each in found.items()}


def divide(run: QueryResults, column: str) -> dict[str, QueryResults]:
    """
    The queries by the value of a column of the catalogue, the commonest first; the whole split stays what is searched.

    Returns:
        `dict[str, QueryResults]`: the queries of each value. Rows without a value are left out, and values without a
        query that has something to find in both directions.

    Raises:
        `ValueError`: there is no such column.
    """
    own = [name for name in run.table.column_names if name not in COLUMNS]
    if column not in own:
        raise ValueError(f"There is no column {column!r} to divide by; the catalogue has {', '.join(own) or 'none'}.")
    parts = {}
    for value in sorted(run.table[column].value_counts().to_pylist(), key=lambda each: -each["counts"]):
        if value["values"] in (None, ""):
            continue
        part = QueryResults(run.table.filter(pyarrow.compute.equal(run.table[column], value["values"])))
        if all(ranks.any() for ranks in part.ranks):
            parts[str(value["values"])] = part
    return parts


def _products(runs: Sequence[QueryResults], baseline: Sequence[QueryResults] | None) -> tuple[list[Any], list[Any]]:
    keys = ["direction", "query", "product"]
    first = runs[0].table.select(keys)
    if any(not first.equals(run.table.select(keys)) for run in (*runs, *(baseline or ()))):
        raise ValueError(
            "The runs were measured on different queries, so they cannot be compared query by query. Measure both on "
            "the same split of the same catalogue."
        )
    return runs[0].side("i2t", "product"), runs[0].side("t2i", "product")
