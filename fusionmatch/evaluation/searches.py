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
"""Every text and picture of a split as a search, before and after: what is found, and which searches tell most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch

from .retrieval import CatalogueEmbeddings


@dataclass
class Search:
    """
    One query of the test split and what it finds.

    Args:
        text (`str` or `None`):
            The query, or `None` for a picture query.
        row (`int`):
            A row of the test split with the right product: for a picture query the query itself.
        rank_before, rank_after (`int`):
            Rank of the right product's first item, 1 is best; for a picture query among the texts.
        find (`Callable`):
            Gives `found`.
    """

    text: str | None
    row: int
    rank_before: int
    rank_after: int
    find: Callable[[], list[int]] = field(repr=False)

    @cached_property
    def found(self) -> list[int]:
        """Rows of the pictures found, best first, one a product; looked up for those that are shown."""
        return self.find()


def text_searches(before: CatalogueEmbeddings, after: CatalogueEmbeddings, top_k: int = 5) -> list[Search]:
    """Every text of the split as a query for pictures, in the order of the texts."""
    ranks = [embeddings.ranks("t2i").tolist() for embeddings in (before, after)]
    first_row = {}
    for row, product in enumerate(after.image_products):
        first_row.setdefault(product, row)

    def find(i: int) -> list[int]:
        return _one_a_product(after.image_scores(i), after.image_products, top_k)

    return [
        Search(text, first_row[product], ranks[0][i], ranks[1][i], partial(find, i))
        for i, (text, product) in enumerate(zip(after.texts, after.text_products, strict=True))
    ]


def image_searches(before: CatalogueEmbeddings, after: CatalogueEmbeddings, top_k: int = 5) -> list[Search]:
    """Every picture of the split as a query for other products' pictures; ranks are those of its texts."""
    ranks = [embeddings.ranks("i2t").tolist() for embeddings in (before, after)]

    def find(row: int) -> list[int]:
        scores = after.image_embeds @ after.image_embeds[row]
        scores[row] = -torch.inf
        return _one_a_product(scores, after.image_products, top_k)

    return [
        Search(None, row, ranks[0][row], ranks[1][row], partial(find, row)) for row in range(len(after.image_products))
    ]


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
