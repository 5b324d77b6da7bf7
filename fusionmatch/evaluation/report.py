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
"""Before/after report of an adaptation: a table for the terminal and a page with pictures of hits and misses."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from .queries import FEW, Difference, QueryResults, columns_to_divide_by, compare, divide, recall_intervals
from .retrieval import CatalogueEmbeddings


# (name shown, key in the metrics, digits)
ROWS = (
    ("picture → text R@1", "i2t_recall@1", 1),
    ("picture → text R@5", "i2t_recall@5", 1),
    ("picture → text R@10", "i2t_recall@10", 1),
    ("text → picture R@1", "t2i_recall@1", 1),
    ("text → picture R@5", "t2i_recall@5", 1),
    ("text → picture R@10", "t2i_recall@10", 1),
    ("RSUM (of 600)", "rsum", 1),
    ("picture → text median rank", "i2t_median_rank", 0),
    ("text → picture median rank", "t2i_median_rank", 0),
)


@dataclass
class Search:
    """
    One query of the test split and what it finds.

    Args:
        text (`str` or `None`):
            The query, or `None` for a picture query.
        row (`int`):
            A row of the test split with the right product: for a picture query the query itself.
        found (`list[int]`):
            Rows of the pictures found, best first, one a product.
        rank_before, rank_after (`int`):
            Rank of the right product's first item, 1 is best; for a picture query among the texts.
    """

    text: str | None
    row: int
    found: list[int]
    rank_before: int
    rank_after: int


def metrics_table(
    before: dict[str, float], after: dict[str, float], differences: dict[str, Difference] | None = None
) -> list[dict[str, str]]:
    """
    Rows `name`, `chance`, `before`, `after`, `change`, `interval` (of the change, where it is known) and `direction`
    (`up` for better) of formatted numbers.
    """
    table = []
    for name, key, digits in ROWS:
        change = after[key] - before[key]
        better = change < 0 if "rank" in key else change > 0
        chance = before.get(f"chance_{key}")
        difference = (differences or {}).get(key)
        table.append(
            {
                "name": name,
                "chance": "" if chance is None else f"{chance:.{digits}f}",
                "before": f"{before[key]:.{digits}f}",
                "after": f"{after[key]:.{digits}f}",
                "change": f"{change:+.{digits}f}",
                "interval": "" if difference is None else f"[{difference.low:+.1f}, {difference.high:+.1f}]",
                "direction": "" if change == 0 else "up" if better else "down",
            }
        )
    return table


def format_table(
    before: dict[str, float], after: dict[str, float], differences: dict[str, Difference] | None = None
) -> str:
    """The before/after table for a terminal, with intervals and a verdict where the differences are given."""
    columns = ["name", "chance", "before", "after", "change"] + (["interval"] if differences else [])
    titles = {"name": "", "interval": "95 % interval"}
    rows = [
        {column: titles.get(column, column) for column in columns},
        *metrics_table(before, after, differences),
    ]
    widths = {column: max(len(row[column]) for row in rows) for column in columns}
    lines = [
        "  ".join(
            row[column].ljust(widths[column]) if column == "name" else row[column].rjust(widths[column])
            for column in columns
        )
        for row in rows
    ]
    verdict = [differences["rsum"].sentence("RSUM", "before")] if differences else []
    lines = [lines[0], "-" * len(lines[0]), *lines[1:], *verdict]
    return "\n".join(line.rstrip() for line in lines)


def in_plain_words(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """The recalls as one would say them to somebody who has never heard of recall."""
    lines = []
    for direction, query, own in (("t2i", "texts", "a picture"), ("i2t", "pictures", "a text")):
        now, then = ([f"{part[f'{direction}_recall@{k}']:.0f}" for k in (1, 10)] for part in (after, before))
        lines.append(
            f"Of 100 {query}, {now[0]} find {own} of their own product in the first place and {now[1]} among the "
            f"first ten; before it was {then[0]} and {then[1]}."
        )
    return lines


def weak_spots(queries: QueryResults, most: int = 6) -> list[tuple[str, list[dict[str, str]]]]:
    """
    For each column of the catalogue that divides the queries: rows `value`, `products`, `i2t` and `t2i` (recall at
    10), `rsum` and `interval`, the weakest first. Values of few products are left out.
    """
    spots = []
    for column in columns_to_divide_by(queries):
        rows = []
        for value, part in divide(queries, column).items():
            if part.num_products < FEW:
                continue
            found = recall_intervals([part])
            rows.append((found["rsum"].value, value, part.num_products, found))
        if len(rows) > 1:
            table = [
                {
                    "value": value,
                    "products": str(count),
                    "i2t": f"{found['i2t_recall@10'].value:.1f}",
                    "t2i": f"{found['t2i_recall@10'].value:.1f}",
                    "rsum": f"{found['rsum'].value:.1f}",
                    "interval": f"[{found['rsum'].low:.1f}, {found['rsum'].high:.1f}]",
                }
                for _, value, count, found in sorted(rows, key=lambda row: row[0])[:most]
            ]
            spots.append((column, table))
    return spots


def text_searches(before: CatalogueEmbeddings, after: CatalogueEmbeddings, top_k: int = 5) -> list[Search]:
    """Every text of the split as a query for pictures, in the order of the texts."""
    ranks = [embeddings.ranks("t2i").tolist() for embeddings in (before, after)]
    first_row = {}
    for row, product in enumerate(after.image_products):
        first_row.setdefault(product, row)
    searches = []
    for i, (text, product) in enumerate(zip(after.texts, after.text_products, strict=True)):
        found = _one_a_product(after.image_scores(i), after.image_products, top_k)
        searches.append(Search(text, first_row[product], found, ranks[0][i], ranks[1][i]))
    return searches


def image_searches(before: CatalogueEmbeddings, after: CatalogueEmbeddings, top_k: int = 5) -> list[Search]:
    """Every picture of the split as a query for other products' pictures; ranks are those of its texts."""
    ranks = [embeddings.ranks("i2t").tolist() for embeddings in (before, after)]
    searches = []
    for row in range(len(after.image_products)):
        scores = after.image_embeds @ after.image_embeds[row]
        scores[row] = -torch.inf
        found = _one_a_product(scores, after.image_products, top_k)
        searches.append(Search(None, row, found, ranks[0][row], ranks[1][row]))
    return searches


def _one_a_product(scores: torch.Tensor, products: Sequence[str], top_k: int) -> list[int]:
    found: dict[str, int] = {}
    for row in scores.argsort(descending=True).tolist():
        if scores[row] > -torch.inf:
            found.setdefault(products[row], row)
        if len(found) == top_k:
            break
    return list(found.values())


def hits_and_misses(searches: Sequence[Search], count: int = 4) -> tuple[list[Search], list[Search]]:
    """The searches that gained most among those now at rank 1, and those that are furthest off."""
    hits = sorted((s for s in searches if s.rank_after == 1), key=lambda s: -s.rank_before)
    misses = sorted((s for s in searches if s.rank_after > 1), key=lambda s: -s.rank_after)
    return hits[:count], misses[:count]


def _thumbnail(image: Image.Image, size: int = 160) -> str:
    image = image.convert("RGB")
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_report(
    path: str | Path,
    title: str,
    facts: Sequence[str],
    before: dict[str, float],
    after: dict[str, float],
    before_embeddings: CatalogueEmbeddings,
    after_embeddings: CatalogueEmbeddings,
    before_queries: QueryResults,
    after_queries: QueryResults,
    dataset: datasets.Dataset,
) -> Path:
    """
    Writes one HTML page that needs nothing beside it: facts, before/after table with intervals and a verdict, where it
    is weak, hits and misses with pictures.

    Args:
        path (`str` or `Path`):
            File to write.
        title (`str`):
            Heading.
        facts (`Sequence[str]`):
            Lines below it: what was measured on what.
        before, after (`dict[str, float]`):
            Metrics from [`~fusionmatch.evaluation.ranking.retrieval_metrics`].
        before_embeddings, after_embeddings ([`CatalogueEmbeddings`]):
            Embeddings of the test split.
        before_queries, after_queries ([`QueryResults`]):
            What was found for each of its queries.
        dataset (`datasets.Dataset`):
            The test split.

    Returns:
        `Path`: the file.
    """
    differences = compare([after_queries], [before_queries])
    pictures = dataset.select_columns(["image"])

    def figure(row: int, product: str | None = None) -> dict[str, Any]:
        name = after_embeddings.image_products[row]
        return {"image": _thumbnail(pictures[row]["image"]), "caption": name, "right": name == product}

    def shown(search: Search) -> dict[str, Any]:
        product = after_embeddings.image_products[search.row]
        wanted = figure(search.row)
        wanted["caption"] = ("wanted: " if search.text else "query: ") + wanted["caption"]
        return {
            "text": search.text and (search.text if len(search.text) <= 280 else search.text[:277] + "…"),
            "before": search.rank_before,
            "after": search.rank_after,
            "wanted": wanted,
            "found": [figure(row, product) for row in search.found],
        }

    texts = text_searches(before_embeddings, after_embeddings)
    hits, misses = hits_and_misses(texts)
    image_hits, image_misses = hits_and_misses(image_searches(before_embeddings, after_embeddings), count=2)
    sections = [
        ("Hits", "Texts whose product comes first now and was furthest away before.", hits),
        ("Misses", "Texts whose product is still furthest away: look at these first.", misses),
        (
            "Pictures as queries",
            "Nearest other pictures; the ranks are those of the picture's own text.",
            [*image_hits, *image_misses],
        ),
    ]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html").render(
        title=title,
        facts=facts,
        table=metrics_table(before, after, differences),
        plain=in_plain_words(before, after),
        verdict=differences["rsum"].sentence("RSUM", "before"),
        weak=weak_spots(after_queries),
        sections=[
            {"title": title, "note": note, "queries": [shown(search) for search in searches]}
            for title, note, searches in sections
            if searches
        ],
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path
