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
"""Exact search in an embedded catalogue."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .evaluation.calibration import Calibration
from .evaluation.reranking import TokenCollector, match_logits, ranking_model
from .evaluation.retrieval import embed_images, embed_texts
from .loading import fingerprint


@dataclass
class Hit:
    """
    A product found.

    Args:
        rank (`int`):
            1 is best.
        product (`str`):
            The product.
        score (`float`):
            Cosine similarity of the query and the product's best picture, in [-1, 1].
        row (`int`):
            Row of that picture in the catalogue.
        image_id (`str`):
            Its name.
        text (`str`):
            The first text of that row.
        probability (`float`, *optional*):
            Of the first hit to be right, in (0, 1); `None` without a calibration, for further hits, and for a picture
            as query.
        match (`float`, *optional*):
            What a ranking stage says of that picture and the query, in (0, 1); `None` for those that it did not look
            at.
    """

    rank: int
    product: str
    score: float
    row: int
    image_id: str
    text: str
    probability: float | None = None
    match: float | None = None


class CatalogueIndex:
    r"""
    Picture embeddings of a catalogue, searched exactly by text or by picture. Meant for up to about 100,000 pictures:
    a query costs one matrix-vector product. Where the model has a ranking stage, it then looks at a text and each of
    the first pictures together and puts these in order.

    Args:
        model ([`FusionMatchModel`] or `PeftModel`):
            The model.
        processor ([`FusionMatchProcessor`]):
            Its processor.
        embeds (`torch.FloatTensor` of shape `(images, projection_dim)`):
            Unit vectors.
        rows (`datasets.Dataset`):
            One row a picture with `product`, `image_id` and `texts`.
        tokens (`torch.HalfTensor` of shape `(images, tokens, hidden_size)`, *optional*):
            What a ranking stage reads of each picture.
        calibration ([`~fusionmatch.evaluation.calibration.Calibration`], *optional*):
            Of texts as queries: gives hits a probability.

    Example:

    ```python
    >>> from fusionmatch import CatalogueIndex
    >>> from fusionmatch.catalogue import read_catalogue

    >>> index = CatalogueIndex.build(model, processor, read_catalogue("products.csv").dataset)
    >>> index.search("a striped mug", top_k=5)
    ```"""

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        embeds: torch.Tensor,
        rows: datasets.Dataset,
        tokens: torch.Tensor | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.embeds = embeds
        self.rows = rows
        self.tokens = tokens
        self.calibration = calibration
        products = {product: i for i, product in enumerate(dict.fromkeys(rows["product"]))}
        self._products = list(products)
        self._product_of_row = torch.tensor([products[product] for product in rows["product"]])

    @classmethod
    def build(
        cls, model: nn.Module, processor: Any, dataset: datasets.Dataset, batch_size: int = 64, **kwargs: Any
    ) -> "CatalogueIndex":
        """Embeds the pictures of a catalogue; `kwargs` go to [`~fusionmatch.evaluation.retrieval.embed_images`]."""
        collect = None if ranking_model(model) is None else TokenCollector()
        embeds = embed_images(model, processor, dataset["image"], batch_size, collect=collect, **kwargs)
        rows = dataset.select_columns(["product", "image_id", "texts"])
        return cls(model, processor, embeds, rows, None if collect is None else torch.stack(collect.tokens))

    def search(self, query: Any, top_k: int = 10, ranking_top_k: int = 20) -> list[Hit]:
        """
        The products nearest to a query, each counted once by its nearest picture.

        Args:
            query (`str` or `PIL.Image.Image`):
                A text or a picture.
            top_k (`int`, *optional*, defaults to 10):
                Most products to return.
            ranking_top_k (`int`, *optional*, defaults to 20):
                Pictures that a ranking stage looks at for a text; 0 leaves it out.

        Returns:
            `list[Hit]`: best first.

        Raises:
            `ValueError`: an empty text, or `top_k` below 1.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        collect = None if self.tokens is None or ranking_top_k < 1 else TokenCollector()
        if isinstance(query, str):
            if not query.strip():
                raise ValueError("The query is an empty text. Describe what to look for.")
            query_embeds = embed_texts(self.model, self.processor, [query], disable_tqdm=True, collect=collect)
        else:
            query_embeds = embed_images(self.model, self.processor, [query], disable_tqdm=True)
        cosines = self.embeds @ query_embeds[0]
        scores, match = cosines, {}
        if collect is not None and collect.tokens:
            first = cosines.topk(min(ranking_top_k, len(cosines))).indices
            logits = match_logits(
                ranking_model(self.model),
                (query_embeds.expand(len(first), -1), collect.tokens * len(first)),
                (self.embeds[first], self.tokens[first]),
            )
            match = dict(zip(first.tolist(), logits.sigmoid().tolist(), strict=True))
            # Above every cosine, in the order of the ranking stage.
            scores = cosines.index_copy(0, first, 2 + logits - logits.min())
        best = torch.full((len(self._products),), -torch.inf).scatter_reduce(
            0, self._product_of_row, scores, reduce="amax"
        )
        hits = []
        for rank, product in enumerate(best.topk(min(top_k, len(best))).indices.tolist(), start=1):
            rows = (self._product_of_row == product).nonzero().flatten()
            row = int(rows[scores[rows].argmax()])
            item = self.rows[row]
            names = self._products[product], float(cosines[row]), row, item["image_id"], item["texts"][0]
            hits.append(Hit(rank, *names, match=match.get(row)))
        if self.calibration is not None and isinstance(query, str) and len(best) > 1:
            nearest = torch.full_like(best, -torch.inf).scatter_reduce(0, self._product_of_row, cosines, reduce="amax")
            first, second = nearest.topk(2).values.tolist()
            # A ranking stage may have put another product first than the similarities that were calibrated.
            if hits[0].score == first:
                hits[0].probability = float(self.calibration.probability(first, first - second))
        return hits

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `embeddings.safetensors`, `rows.parquet` and `index.json` (which model it was made with)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"image_embeds": self.embeds} | ({} if self.tokens is None else {"image_tokens": self.tokens})
        save_file(tensors, folder / "embeddings.safetensors")
        self.rows.to_parquet(folder / "rows.parquet")
        note = {"model_fingerprint": fingerprint(self.model, with_adapter=True), "images": len(self.rows)}
        (folder / "index.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: nn.Module, processor: Any) -> "CatalogueIndex":
        """
        Loads an index.

        Raises:
            `FileNotFoundError`: the folder holds none.
            `ValueError`: it was made with other weights than the model's.
        """
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"{folder} holds no index (no `index.json`). `CatalogueIndex.build` makes one.")
        wanted = json.loads((folder / "index.json").read_text(encoding="utf-8"))["model_fingerprint"]
        found = fingerprint(model, with_adapter=True)
        if wanted != found:
            raise ValueError(
                f"The index {folder} was made with a model of the fingerprint {wanted}, this one has {found}. Their "
                "vectors do not compare; build the index anew."
            )
        rows = datasets.Dataset.from_parquet(str(folder / "rows.parquet"))
        tensors = load_file(folder / "embeddings.safetensors")
        return cls(model, processor, tensors["image_embeds"], rows, tensors.get("image_tokens"))
