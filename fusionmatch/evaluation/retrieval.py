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

"""Embeds a catalogue with a model and measures retrieval in both directions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import datasets
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from ..outputs_fusionmatch import FusionMatchTowerFeatures, FusionMatchTowerOutput
from .inputs import count_truncated, image_inputs, text_inputs, text_limit
from .ranking import both_ranks, ranking_quality, summarise_ranks
from .reranking import TokenCollector, ranking_model, rerank, reranked_ranks


logger = logging.get_logger(__name__)


FeatureLookup = Callable[[Sequence[int]], FusionMatchTowerFeatures]
Collect = Callable[[FusionMatchTowerOutput, Sequence[int]], None]


@dataclass
class CatalogueEmbeddings:
    """
    An embedded catalogue.

    Args:
        image_embeds (`torch.FloatTensor` of shape `(images, projection_dim)`):
            Unit vectors of the pictures.
        text_embeds (`torch.FloatTensor` of shape `(texts, projection_dim)`):
            Unit vectors of the texts.
        image_products, text_products (`list[str]`):
            The products that they belong to.
        texts (`list[str]`):
            The texts.
        candidates (`dict`, *optional*):
            Of a model with a ranking stage: for the keys `i2t` and `t2i` the first candidates of each query and what
            that stage says of them ([`~fusionmatch.evaluation.reranking.rerank`]).
    """

    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    image_products: list[str]
    text_products: list[str]
    texts: list[str]
    candidates: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def ranks(self, direction: str) -> torch.Tensor:
        """
        Rank of the first item of its own product for each picture (`i2t`) or text (`t2i`), from 1; 0 for none. With a
        ranking stage where there is one.
        """
        ranks, sides = self._ranks[direction == "t2i"], (self.image_products, self.text_products)
        if direction in self.candidates:
            own, gallery = sides if direction == "i2t" else reversed(sides)
            return reranked_ranks(ranks, *self.candidates[direction], own, gallery)
        return ranks

    def quality(self, direction: str) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Average precision at R and nDCG at 10 of each picture (`i2t`) or text (`t2i`), see
        [`~fusionmatch.evaluation.ranking.ranking_quality`].
        """
        sides = [(self.image_embeds, self.image_products), (self.text_embeds, self.text_products)]
        (queries, own), (gallery, products) = sides if direction == "i2t" else reversed(sides)
        first = None
        if direction in self.candidates:
            candidates, logits = self.candidates[direction]
            codes = {product: i for i, product in enumerate(dict.fromkeys([*own, *products]))}
            asked, offered = (torch.tensor([codes[product] for product in part]) for part in (own, products))
            # Ties count against the model: of equal ones the irrelevant come first.
            last = (offered[candidates] == asked[:, None]).int().argsort(dim=1, stable=True)
            order = logits.gather(1, last).argsort(dim=1, descending=True, stable=True)
            first = candidates.gather(1, last.gather(1, order))
        return ranking_quality(queries, gallery, own, products, first=first)

    @cached_property
    def _ranks(self) -> tuple[torch.Tensor, torch.Tensor]:
        return both_ranks(self.image_embeds, self.text_embeds, self.image_products, self.text_products)

    def image_scores(self, text: int) -> torch.Tensor:
        """
        Order of the pictures for a text, (images,): the cosine; with a ranking stage the first candidates lie above
        all others, in its order.
        """
        scores = self.image_embeds @ self.text_embeds[text]
        if "t2i" in self.candidates:
            candidates, logits = (part[text] for part in self.candidates["t2i"])
            scores[candidates] = 2 + logits - logits.min()
        return scores

    def text_scores(self, image: int) -> torch.Tensor:
        """Order of the texts for a picture, (texts,), as [`image_scores`]."""
        scores = self.text_embeds @ self.image_embeds[image]
        if "i2t" in self.candidates:
            candidates, logits = (part[image] for part in self.candidates["i2t"])
            scores[candidates] = 2 + logits - logits.min()
        return scores

    def metrics(self, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """Retrieval metrics, see [`~fusionmatch.evaluation.ranking.retrieval_metrics`]."""
        products = self.image_products, self.text_products
        return summarise_ranks(self.ranks("i2t"), self.ranks("t2i"), *products, ks=ks)


def unique_texts(dataset: datasets.Dataset) -> tuple[list[str], list[str]]:
    """The different texts of each product, in the order of their first row, and the products they belong to."""
    seen = dict.fromkeys(
        (text, product) for texts, product in zip(dataset["texts"], dataset["product"], strict=True) for text in texts
    )
    return [text for text, _ in seen], [product for _, product in seen]


def _batches(order: Sequence[int], batch_size: int, description: str, disable_tqdm: bool) -> Iterable[Sequence[int]]:
    with tqdm(total=len(order), desc=description, disable=disable_tqdm, unit="row") as bar:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            yield rows
            bar.update(len(rows))


@torch.no_grad()
def embed_images(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    batch_size: int = 64,
    disable_tqdm: bool = False,
    vision_features: FeatureLookup | None = None,
    collect: Collect | None = None,
) -> torch.Tensor:
    """
    Embeds pictures.

    Args:
        model ([`FusionMatchModel`] or `PeftModel`):
            The model; put into evaluation mode for the while.
        processor ([`FusionMatchProcessor`]):
            Its processor.
        images (sequence of `PIL.Image.Image`):
            Pictures of any mode and size; a `datasets` image column is decoded batch by batch.
        batch_size (`int`, *optional*, defaults to 64):
            Pictures at a time.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to leave out the progress bar.
        vision_features (`Callable`, *optional*):
            Cached tower features by index, in place of the pictures.
        collect (`Callable`, *optional*):
            Takes the [`~fusionmatch.outputs_fusionmatch.FusionMatchTowerOutput`] of each batch and the indices of its
            rows, for what is wanted besides.

    Returns:
        `torch.FloatTensor` of shape `(images, projection_dim)`: unit vectors on the CPU.
    """

    def inputs(rows: Sequence[int]) -> dict[str, Any]:
        if vision_features is not None:
            return {"vision_features": vision_features(rows)}
        return {"pixel_values": image_inputs(processor, images[rows[0] : rows[-1] + 1])}

    return _embed(model, inputs, "image", range(len(images)), batch_size, "Embedding pictures", disable_tqdm, collect)


@torch.no_grad()
def embed_texts(
    model: nn.Module,
    processor: Any,
    texts: Sequence[str],
    batch_size: int = 256,
    disable_tqdm: bool = False,
    text_features: FeatureLookup | None = None,
    collect: Collect | None = None,
) -> torch.Tensor:
    """
    Embeds texts; see [`embed_images`]. Texts beyond [`~fusionmatch.evaluation.inputs.text_limit`]
    are cut, and how many is logged.

    Returns:
        `torch.FloatTensor` of shape `(texts, projection_dim)`: unit vectors on the CPU.
    """

    if text_features is None:
        truncated = count_truncated(processor, texts, model.config.text_config)
        if truncated:
            logger.warning_once(
                f"{truncated} of {len(texts)} texts are longer than {text_limit(processor, model.config.text_config)} "
                "tokens; what goes beyond is not read."
            )

    def inputs(rows: Sequence[int]) -> dict[str, Any]:
        if text_features is not None:
            return {"text_features": text_features(rows)}
        return text_inputs(processor, [texts[row] for row in rows], model.config.text_config)

    # Texts of a length together: short ones do not pay for the padding to the longest.
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    return _embed(model, inputs, "text", order, batch_size, "Embedding texts", disable_tqdm, collect)


def _embed(
    model: nn.Module,
    inputs: Callable[[Sequence[int]], dict[str, Any]],
    name: str,
    order: Sequence[int],
    batch_size: int,
    description: str,
    disable_tqdm: bool,
    collect: Collect | None,
) -> torch.Tensor:
    was_training = model.training
    model.eval()
    embeds = []
    for rows in _batches(order, batch_size, description, disable_tqdm):
        moved = {
            key: value.to(model.device)
            if isinstance(value, torch.Tensor)
            else FusionMatchTowerFeatures(
                pooled=value.pooled.to(model.device),
                levels=tuple(level.to(model.device) for level in value.levels),
                attention_mask=None if value.attention_mask is None else value.attention_mask.to(model.device),
            )
            for key, value in inputs(rows).items()
        }
        outputs = model(**moved)
        embeds.append(outputs[f"{name}_embeds"].float().cpu())
        if collect is not None:
            collect(outputs.text_model_output if name == "text" else outputs.vision_model_output, rows)
    model.train(was_training)
    return torch.cat(embeds)[torch.tensor(order).argsort()]


def embed_catalogue(
    model: nn.Module,
    processor: Any,
    dataset: datasets.Dataset,
    batch_size: int = 64,
    disable_tqdm: bool = False,
    vision_features: FeatureLookup | None = None,
    text_features: FeatureLookup | None = None,
    ranking_top_k: int = 20,
    collect: tuple[Collect, Collect] | None = None,
) -> CatalogueEmbeddings:
    """
    Embeds the pictures of a catalogue split and the different texts of its products. A ranking stage, where the model
    has one, then looks at the first candidates of every picture and text.

    Args:
        dataset (`datasets.Dataset`):
            Rows with `image`, `texts` and `product`.
        vision_features, text_features (`Callable`, *optional*):
            Cached tower features by row, and by index into [`unique_texts`].
        ranking_top_k (`int`, *optional*, defaults to 20):
            Candidates of each query for the ranking stage; 0 leaves it out.
        collect (`tuple[Callable, Callable]`, *optional*):
            As in [`embed_images`] and [`embed_texts`], in this order.

    The other arguments are those of [`embed_images`] and [`embed_texts`].

    Raises:
        `ValueError`: `ranking_top_k` is below 0.
    """
    if ranking_top_k < 0:
        raise ValueError(f"`ranking_top_k` must be 0 or more, got {ranking_top_k}.")
    texts, text_products = unique_texts(dataset)
    ranker = ranking_model(model) if ranking_top_k else None
    tokens = None if ranker is None else (TokenCollector(), TokenCollector())

    def collector(side: int) -> Collect:
        def keep(output: FusionMatchTowerOutput, rows: Sequence[int]) -> None:
            for part in (tokens, collect):
                if part is not None:
                    part[side](output, rows)

        return keep

    found = CatalogueEmbeddings(
        image_embeds=embed_images(
            model, processor, dataset["image"], batch_size, disable_tqdm, vision_features, collector(0)
        ),
        text_embeds=embed_texts(model, processor, texts, 4 * batch_size, disable_tqdm, text_features, collector(1)),
        image_products=list(dataset["product"]),
        text_products=text_products,
        texts=texts,
    )
    if ranker is not None:
        was_training = ranker.training
        ranker.eval()
        sides = (found.text_embeds, tokens[1].tokens), (found.image_embeds, tokens[0].tokens)
        found.candidates = {
            direction: rerank(ranker, *sides, direction, ranking_top_k, disable_tqdm=disable_tqdm)
            for direction in ("i2t", "t2i")
        }
        ranker.train(was_training)
    return found


def evaluate_retrieval(
    model: nn.Module, processor: Any, dataset: datasets.Dataset, ks: Sequence[int] = (1, 5, 10), **kwargs: Any
) -> dict[str, float]:
    """
    Retrieval metrics of a model on a catalogue split, pictures to texts and texts to pictures.

    Args:
        model ([`FusionMatchModel`], [`FusionMatchForImageTextRetrieval`] or `PeftModel`):
            The model; a ranking stage is used unless `ranking_top_k=0`.
        processor ([`FusionMatchProcessor`]):
            Its processor.
        dataset (`datasets.Dataset`):
            Rows with `image`, `texts` and `product`; a picture and a text are relevant to each other if their product
            is the same.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`):
            Ranks for recall.
        kwargs:
            Passed to [`embed_catalogue`].

    Returns:
        `dict[str, float]`: see [`~fusionmatch.evaluation.ranking.retrieval_metrics`].
    """
    return embed_catalogue(model, processor, dataset, **kwargs).metrics(ks)
