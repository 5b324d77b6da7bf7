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
"""
Ranking metrics of image-text retrieval, from embeddings and product groups.

Definitions, as the image-text retrieval literature uses them (VSE++ and its successors, CLIP_benchmark):

- An image and a text are relevant to each other if, and only if, they belong to the same product. Both may have many.
- Recall@k is the share of queries, in percent, with *at least one* relevant item among the first k. (The share of all
  relevant items that are found, which MTEB calls `recall_at_k`, is another quantity.)
- Ties are broken against the model: an irrelevant item whose score equals that of the best relevant one counts before
  it. A model that gives every item the same embedding therefore gets the worst rank, not the best.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from tqdm.auto import tqdm


Embeddings: TypeAlias = torch.Tensor | np.ndarray
Products: TypeAlias = Sequence[Hashable] | np.ndarray | torch.Tensor
Tile: TypeAlias = tuple[slice, slice, bool]


@torch.no_grad()
def retrieval_metrics(
    image_embeds: Embeddings,
    text_embeds: Embeddings,
    image_products: Products,
    text_products: Products,
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 1024,
) -> dict[str, float]:
    """
    Recall@k, median rank and mean reciprocal rank of image-to-text and text-to-image retrieval by cosine similarity.

    Args:
        image_embeds (`torch.Tensor` or `np.ndarray` of shape `(num_images, dim)`):
            Embeddings of the images, of any length: they are normalised here. A zero vector stays zero.
        text_embeds (`torch.Tensor` or `np.ndarray` of shape `(num_texts, dim)`):
            Embeddings of the texts.
        image_products (sequence of `str` or `int`, of length `num_images`):
            The product of each image.
        text_products (sequence of `str` or `int`, of length `num_texts`):
            The product of each text. `"7"` and `7` are two products.
        ks (sequence of `int`, *optional*, defaults to `(1, 5, 10)`):
            The depths at which recall is reported.
        chunk_size (`int`, *optional*, defaults to 1024):
            Rows and columns of the similarity matrix that are held at a time. It changes memory and speed alone: the
            memory beyond the embeddings (which are held in float64) is about `20 * chunk_size ** 2` bytes.

    Returns:
        `dict[str, float]`: with `i2t` for an image as query and texts as gallery, `t2i` for the reverse:

        - `{i2t,t2i}_recall@{k}`: percent of the queries with a relevant item among the first k, 0 to 100.
        - `{i2t,t2i}_median_rank`: `floor(median(rank - 1)) + 1` of the first relevant item, as in VSE++; from 1.
        - `{i2t,t2i}_mrr`: mean of `1 / rank` of the first relevant item, 0 to 1.
        - `{i2t,t2i}_queries`: number of queries measured. A query with no relevant item in the gallery is left out of
          every mean; `images - i2t_queries` and `texts - t2i_queries` are the numbers left out.
        - `rsum`: sum of the six recalls at 1, 5 and 10, 0 to 600. Only if `ks` holds 1, 5 and 10.
        - `chance_{i2t,t2i}_recall@{k}`, `chance_rsum`: what a model that ranks at random is expected to reach with
          these very galleries.
        - `images`, `texts`: sizes of the two galleries, items without a counterpart included.

    Raises:
        ValueError: embeddings that are not two-dimensional, differ in width, or hold NaN or infinity; lengths that
            differ; missing products; no image that shares its product with a text; `ks` or `chunk_size` below 1.
    """
    depths = sorted({_positive("ks", k) for k in ks})
    if not depths:
        raise ValueError("`ks` is empty. Give at least one depth, such as ks=(1, 5, 10).")
    ranks = both_ranks(image_embeds, text_embeds, image_products, text_products, chunk_size=chunk_size)
    return summarise_ranks(*ranks, image_products, text_products, ks=depths)


@torch.no_grad()
def both_ranks(
    image_embeds: Embeddings,
    text_embeds: Embeddings,
    image_products: Products,
    text_products: Products,
    *,
    chunk_size: int = 1024,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    [`rank_of_first_relevant`] of the images among the texts and of the texts among the images, from one pass over the
    similarities. Arguments and errors are those of [`retrieval_metrics`].
    """
    sides = _Sides("image_embeds", image_embeds, image_products, "text_embeds", text_embeds, text_products)
    return sides.ranks(chunk_size)


def average_ranks(found: torch.Tensor) -> dict[str, float]:
    """`median_rank` and `mrr`, as [`retrieval_metrics`] has them, of the queries that have something to find."""
    median = math.floor(np.median(found.numpy() - 1)) + 1.0
    return {"median_rank": median, "mrr": found.double().reciprocal().mean().item()}


def summarise_ranks(
    image_ranks: torch.Tensor,
    text_ranks: torch.Tensor,
    image_products: Products,
    text_products: Products,
    *,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """
    The metrics of [`retrieval_metrics`] from ranks, whatever they come from: embeddings, or a ranking stage.

    Args:
        image_ranks (`torch.Tensor` of shape `(num_images,)`):
            Rank of each image's first relevant text, from 1; 0 where there is none.
        text_ranks (`torch.Tensor` of shape `(num_texts,)`):
            The same of each text among the images.
        image_products, text_products (sequence of `str` or `int`):
            Products of the images and texts.
        ks (sequence of `int`, *optional*, defaults to `(1, 5, 10)`):
            The depths at which recall is reported.

    Raises:
        ValueError: no image shares its product with a text.
    """
    if not image_ranks.any():
        raise ValueError(
            f"No image shares its product with a text, so there is nothing to find. The first image's product is "
            f"{_first(image_products)!r}, the first text's {_first(text_products)!r}: check that both use the same "
            f"keys and the same type."
        )
    products = [_values(side) for side in (image_products, text_products)]
    sizes = [len(side) for side in products]
    metrics: dict[str, float] = {}
    sides = zip(("i2t", "t2i"), (image_ranks, text_ranks), products, reversed(products), strict=True)
    for direction, rank, own, gallery in sides:
        number = Counter(gallery)
        counts = torch.tensor([number[product] for product in own])
        found = rank[rank > 0]
        for k in ks:
            metrics[f"{direction}_recall@{k}"] = 100.0 * int((found <= k).sum()) / len(found)
            metrics[f"chance_{direction}_recall@{k}"] = chance_recall(counts, len(gallery), k)
        metrics |= {f"{direction}_{name}": value for name, value in average_ranks(found).items()}
        metrics[f"{direction}_queries"] = len(found)
    if {1, 5, 10} <= set(ks):
        for prefix in ("", "chance_"):
            metrics[f"{prefix}rsum"] = math.fsum(
                metrics[f"{prefix}{direction}_recall@{k}"] for direction in ("i2t", "t2i") for k in (1, 5, 10)
            )
    return metrics | {"images": sizes[0], "texts": sizes[1]}


@torch.no_grad()
def rank_of_first_relevant(
    query_embeds: Embeddings,
    gallery_embeds: Embeddings,
    query_products: Products,
    gallery_products: Products,
    *,
    chunk_size: int = 1024,
) -> torch.LongTensor:
    """
    Rank, by cosine similarity, of the first item of the gallery that belongs to the query's product.

    Two scores closer than the rounding error of their float64 dot products are one score (`4 * (dim + 1)` units of
    2.2e-16, about 2e-13 for 256 dimensions). Copies of a vector thus tie wherever they stand in the gallery, although
    a matrix product rounds differently at the edge of a tile, and a tie counts against the model.

    Args:
        query_embeds (`torch.Tensor` or `np.ndarray` of shape `(num_queries, dim)`):
            Embeddings of the queries, of any length.
        gallery_embeds (`torch.Tensor` or `np.ndarray` of shape `(num_items, dim)`):
            Embeddings of the items that are searched.
        query_products (sequence of `str` or `int`, of length `num_queries`):
            The product of each query.
        gallery_products (sequence of `str` or `int`, of length `num_items`):
            The product of each item.
        chunk_size (`int`, *optional*, defaults to 1024):
            Rows and columns of the similarity matrix that are held at a time.

    Returns:
        `torch.LongTensor` of shape `(num_queries,)`: ranks from 1; 0 where the gallery holds nothing relevant.

    Raises:
        ValueError: as [`retrieval_metrics`] does, but queries without a relevant item are allowed.
    """
    sides = _Sides("query_embeds", query_embeds, query_products, "gallery_embeds", gallery_embeds, gallery_products)
    return sides.ranks(chunk_size)[0]


@torch.no_grad()
def ranking_quality(
    query_embeds: Embeddings,
    gallery_embeds: Embeddings,
    query_products: Products,
    gallery_products: Products,
    *,
    k: int = 10,
    first: torch.Tensor | None = None,
    chunk_size: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    What recall does not see: whether *all* items of a query's product come first.

    - Average precision at R, $\frac{1}{R} \sum_{i=1}^{R} P(i) \, rel(i)$ with R the number of relevant items (MAP@R of
      Musgrave et al. 2020, arXiv 2003.08505).
    - nDCG at k with relevance 0 or 1 (Järvelin and Kekäläinen 2002).

    Args:
        k (`int`, *optional*, defaults to 10):
            Depth of nDCG.
        first (`torch.LongTensor` of shape `(num_queries, candidates)`, *optional*):
            Items of the gallery that come before all others, best first: the order of a ranking stage.

    The other arguments, ties and errors are those of [`rank_of_first_relevant`].

    Returns:
        `tuple[torch.DoubleTensor, torch.DoubleTensor]` of shape `(num_queries,)`: both in [0, 1]; NaN where there is
        nothing relevant.
    """
    sides = _Sides("query_embeds", query_embeds, query_products, "gallery_embeds", gallery_embeds, gallery_products)
    (queries, gallery), (codes, gallery_codes) = sides.units, sides.codes
    counts = torch.bincount(gallery_codes, minlength=int(codes.max()) + 1)[codes]
    depth = min(max(_positive("k", k), int(counts.max())), len(gallery))
    discount = 1 / (torch.arange(depth) + 2).double().log2()
    tolerance = 4 * (queries.shape[1] + 1) * torch.finfo(torch.float64).eps
    precision, gain = (torch.full((len(codes),), torch.nan, dtype=torch.float64) for _ in range(2))
    rows, place = (counts > 0).nonzero().flatten(), sides.orders[1].argsort()
    for part in rows.split(max(1, _positive("chunk_size", chunk_size) ** 2 // len(gallery))):
        relevant = codes[part, None] == gallery_codes
        # Ties count against the model.
        scores = queries[part] @ gallery.T - tolerance * relevant
        if first is not None:
            places = place[first[sides.orders[0][part]]]
            scores.scatter_(1, places, torch.linspace(3, 2, places.shape[1], dtype=scores.dtype).expand_as(places))
        found = relevant.gather(1, scores.topk(depth).indices).double()
        number = counts[part, None]
        within = torch.arange(depth) < number
        at = found.cumsum(dim=1) / torch.arange(1, depth + 1)
        precision[part] = (at * found * within).sum(dim=1) / number[:, 0]
        ideal = (discount[:k] * within[:, :k]).sum(dim=1)
        gain[part] = (found[:, :k] * discount[:k]).sum(dim=1) / ideal
    order = sides.orders[0].argsort()
    return precision[order], gain[order]


def chance_recall(relevant_counts: torch.Tensor, gallery_size: int, k: int) -> float:
    """
    Expected recall@k, in percent, of a ranking at random: the mean of `1 - C(g - r, k) / C(g, k)` over the queries.

    A query misses if all of its first k items are among the `g - r` irrelevant ones (hypergeometric distribution).

    Args:
        relevant_counts (`torch.Tensor` of shape `(num_queries,)`):
            Number `r` of relevant items of each query. Queries with none are left out.
        gallery_size (`int`):
            Number `g` of items in the gallery.
        k (`int`):
            Depth of the ranking.

    Returns:
        `float`: 0 to 100.
    """
    values, weights = relevant_counts[relevant_counts > 0].unique(return_counts=True)
    total = math.comb(gallery_size, min(k, gallery_size))
    hits = math.fsum(
        weight * ((total - math.comb(gallery_size - count, min(k, gallery_size))) / total)
        for count, weight in zip(values.tolist(), weights.tolist(), strict=True)
    )
    return 100.0 * hits / int(weights.sum())


class _Sides:
    """Checked unit vectors and product codes of the two sides, each side sorted by product."""

    def __init__(
        self,
        first_name: str,
        first_embeds: Embeddings,
        first_products: Products,
        second_name: str,
        second_embeds: Embeddings,
        second_products: Products,
    ) -> None:
        first, second = _unit_rows(first_name, first_embeds), _unit_rows(second_name, second_embeds)
        if first.shape[1] != second.shape[1]:
            raise ValueError(
                f"`{first_name}` has {first.shape[1]} dimensions and `{second_name}` {second.shape[1]}. Both must "
                f"come from the same model."
            )
        seen: dict[Hashable, int] = {}
        codes = [
            _product_codes(first_name, first_products, len(first), seen),
            _product_codes(second_name, second_products, len(second), seen),
        ]
        # Sorted by product, relevant pairs lie in a band near the diagonal: all other tiles need no look at products.
        self.orders = [code.argsort(stable=True) for code in codes]
        self.codes = [code[order] for code, order in zip(codes, self.orders, strict=True)]
        self.units = [unit[order] for unit, order in zip((first, second), self.orders, strict=True)]

    def ranks(self, chunk_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """1-based rank of the first relevant item, 0 for none, for both directions from one pass over the scores."""
        (first, second), (first_codes, second_codes) = self.units, self.codes
        tiles = list(self._tiles(_positive("chunk_size", chunk_size)))
        best = [torch.full((len(codes),), -torch.inf, dtype=torch.float64) for codes in self.codes]
        for rows, columns, shared in tiles:
            if shared:
                scores = first[rows] @ second[columns].T
                scores.masked_fill_(first_codes[rows, None] != second_codes[columns], -torch.inf)
                best[0][rows] = best[0][rows].maximum(scores.amax(1))
                best[1][columns] = best[1][columns].maximum(scores.amax(0))

        tolerance = 4 * (first.shape[1] + 1) * torch.finfo(torch.float64).eps
        floors = [scores - tolerance for scores in best]
        ahead = [torch.zeros(len(codes), dtype=torch.long) for codes in self.codes]
        for rows, columns, shared in tqdm(tiles, desc="Ranking", unit="tile", delay=1, leave=False):
            scores = first[rows] @ second[columns].T
            if shared:
                scores.masked_fill_(first_codes[rows, None] == second_codes[columns], -torch.inf)
            # int32 sums are several times faster than the default int64 and cannot overflow within a tile.
            ahead[0][rows] += (scores >= floors[0][rows, None]).sum(1, dtype=torch.int32)
            ahead[1][columns] += (scores >= floors[1][columns]).sum(0, dtype=torch.int32)

        ranks = []
        for order, scores, before in zip(self.orders, best, ahead, strict=True):
            rank = torch.empty_like(before)
            rank[order] = torch.where(scores.isneginf(), 0, before + 1)
            ranks.append(rank)
        return ranks[0], ranks[1]

    def _tiles(self, chunk_size: int) -> Iterator[Tile]:
        """Row range, column range, and whether the tile may hold a relevant pair."""
        first, second = (codes.tolist() for codes in self.codes)
        for row in range(0, len(first), chunk_size):
            rows = slice(row, min(row + chunk_size, len(first)))
            for column in range(0, len(second), chunk_size):
                columns = slice(column, min(column + chunk_size, len(second)))
                shared = first[row] <= second[columns.stop - 1] and second[column] <= first[rows.stop - 1]
                yield rows, columns, shared


def _unit_rows(name: str, embeds: Embeddings) -> torch.Tensor:
    """Rows of length one (or zero) in float64 on the CPU: not every device has that type, and float32 makes ties."""
    rows = torch.as_tensor(embeds)
    if rows.ndim != 2 or 0 in rows.shape or rows.is_complex():
        raise ValueError(
            f"`{name}` must hold real numbers in a shape (items, dimensions), neither of them zero, but has shape "
            f"{tuple(rows.shape)} and type {rows.dtype}."
        )
    rows = rows.detach().to("cpu", torch.float64)
    bad = (~rows.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"`{name}`: {len(bad)} of {len(rows)} rows hold NaN or infinity, the first at index {int(bad[0])}. Leave "
            f"these items out or embed them again; in half precision, try float32 or bfloat16."
        )
    # Dividing by the largest entry first keeps the squares of very small and very large entries in range.
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(largest == 0, 1.0, largest)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(torch.where(length == 0, 1.0, length))


def _product_codes(name: str, products: Products, length: int, seen: dict[Hashable, int]) -> torch.Tensor:
    """One integer a product, the same in every call with the same `seen`."""
    values = _values(products)
    if len(values) != length:
        raise ValueError(f"`{name}` has {length} rows but {len(values)} products were given for it. Give one a row.")
    try:
        codes = [seen.setdefault(value, len(seen)) for value in values]
        missing = [index for index, value in enumerate(values) if value is None or value != value]
    except TypeError as error:
        raise ValueError(f"The products given for `{name}` must be strings or whole numbers: {error}.") from error
    if missing:
        raise ValueError(
            f"{len(missing)} of the {length} products given for `{name}` are missing (None or NaN), the first at "
            f"index {missing[0]}. Give every item a product; a single item is a product of its own."
        )
    return torch.tensor(codes)


def _values(products: Products) -> list[Hashable]:
    # Tensors hash by identity and NumPy scalars print badly in errors: both become Python objects.
    return products.tolist() if isinstance(products, torch.Tensor | np.ndarray) else list(products)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"`{name}` must be a whole number from 1, got {value!r}.")
    return int(value)


def _first(products: Products) -> Hashable:
    first = products[0]
    return first.item() if isinstance(first, torch.Tensor | np.generic) else first
