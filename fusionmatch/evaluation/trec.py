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
"""Runs as TREC files, for trec_eval, ranx and the like; and runs of other systems as results of queries."""

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets

from .queries import DIRECTIONS, QueryResults
from .retrieval import CatalogueEmbeddings, unique_texts


def _names(dataset: datasets.Dataset) -> dict[str, tuple[list[str], list[str]]]:
    """For pictures and texts of a split their ids in the files, which may hold no spaces, and their products."""
    _, text_products = unique_texts(dataset)
    products = {"image": [str(product) for product in dataset["product"]], "text": [str(p) for p in text_products]}
    return {side: ([f"{side}-{i}" for i in range(len(own))], own) for side, own in products.items()}


def _sides(direction: str) -> tuple[str, str]:
    return ("image", "text") if direction == "i2t" else ("text", "image")


def _as_tsv(ids: Sequence[str], values: Iterable[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(zip(ids, values, strict=True))
    return text.getvalue().encode()


def write_trec(folder: str | Path, found: CatalogueEmbeddings, dataset: datasets.Dataset, depth: int = 100) -> Path:
    """
    Writes `i2t.run` and `t2i.run`, `i2t.qrels` and `t2i.qrels`, and what the ids in them stand for, `images.tsv` and
    `texts.tsv`.

    Args:
        folder (`str` or `Path`):
            Folder to write; made where it does not exist.
        found ([`CatalogueEmbeddings`]), dataset (`datasets.Dataset`):
            A split and its embeddings.
        depth (`int`, *optional*, defaults to 100):
            Items listed for each query.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = _names(dataset)
    for side, values in (("image", dataset["image_id"]), ("text", found.texts)):
        (folder / f"{side}s.tsv").write_bytes(_as_tsv(names[side][0], values))
    for direction in DIRECTIONS:
        (ids, products), (items, item_products) = (names[side] for side in _sides(direction))
        relevant = defaultdict(list)
        for item, product in zip(items, item_products, strict=True):
            relevant[product].append(item)
        with (folder / f"{direction}.qrels").open("w", encoding="utf-8") as qrels:
            for query, product in zip(ids, products, strict=True):
                qrels.writelines(f"{query} 0 {item} 1\n" for item in relevant[product])
        with (folder / f"{direction}.run").open("w", encoding="utf-8") as run:
            for row, query in enumerate(ids):
                scores = found.image_scores(row) if direction == "t2i" else found.text_scores(row)
                best = scores.topk(min(depth, len(items)))
                for rank, (item, score) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True), 1):
                    run.write(f"{query} Q0 {items[item]} {rank} {score:.9f} fusionmatch\n")
    return folder


def read_trec(folder: str | Path, dataset: datasets.Dataset) -> QueryResults:
    """
    The results of a run, ours or that of another system on the ids of [`write_trec`]. Items that a run does not list
    count as the last ones; equal scores count against it.

    Args:
        folder (`str` or `Path`):
            Holds `i2t.run` and `t2i.run`.
        dataset (`datasets.Dataset`):
            The split.

    Raises:
        `FileNotFoundError`: one of the two is missing.
        `ValueError`: a line is none of a run, or names what the split does not hold; or `images.tsv` or `texts.tsv`
            lies beside the run and is of another split.
    """
    names, rows = _names(dataset), []
    texts, _ = unique_texts(dataset)
    shown = {"image": [str(name) for name in dataset["image_id"]], "text": texts}
    for side, own in shown.items():
        path = Path(folder) / f"{side}s.tsv"
        if path.is_file() and path.read_bytes() != _as_tsv(names[side][0], own):
            raise ValueError(
                f"'{path}' is of another split than the {len(dataset):,} pictures to measure on: the ids of the "
                "run would mean others here. Give the same catalogue, split and seed, or write the run again."
            )
    for direction in DIRECTIONS:
        asked, offered = _sides(direction)
        (ids, products), (items, item_products) = names[asked], names[offered]
        product_of, known = dict(zip(items, item_products, strict=True)), set(ids)
        listed: dict[str, dict[str, float]] = defaultdict(dict)
        path = Path(folder) / f"{direction}.run"
        if not path.is_file():
            raise FileNotFoundError(f"There is no run at '{path}' (looked from {Path.cwd()}).")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                query, _, item, _, score, _ = line.split()
                value = float(score)
            except ValueError as error:
                raise ValueError(
                    f"'{path}', line {number}: a run has six fields, `query Q0 item rank score name`, got "
                    f"{line[:80]!r}."
                ) from error
            if query not in known or item not in product_of or math.isnan(value):
                raise ValueError(
                    f"'{path}', line {number}: {line[:80]!r} names a query or an item that this split does not hold, "
                    "or no score. Use the ids of `images.tsv` and `texts.tsv`."
                )
            listed[query][item] = value
        count = Counter(item_products)
        for query, name, product in zip(ids, shown[asked], products, strict=True):
            found = [(score, product_of[item] == product) for item, score in listed[query].items()]
            found.sort(key=lambda each: (-each[0], each[1]))
            hits = [right for _, right in found]
            number = count[product]
            rank = 0 if not number else hits.index(True) + 1 if True in hits else len(items)
            gains = [1 / math.log2(i + 2) for i in range(10)]
            precision = sum(sum(hits[: i + 1]) / (i + 1) for i, right in enumerate(hits[:number]) if right)
            rows.append(
                {
                    "direction": direction,
                    "query": name,
                    "product": product,
                    "rank": rank,
                    "average_precision": precision / number if number else math.nan,
                    "ndcg@10": sum(g for g, right in zip(gains, hits, strict=False) if right) / sum(gains[:number])
                    if number
                    else math.nan,
                }
            )
    return QueryResults.from_rows(rows)
