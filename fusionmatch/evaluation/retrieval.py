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
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from ..modeling_fusionmatch_branch import FusionMatchTowerFeatures
from .inputs import count_truncated, image_inputs, text_inputs, text_limit
from .ranking import retrieval_metrics


logger = logging.get_logger(__name__)


FeatureLookup = Callable[[Sequence[int]], FusionMatchTowerFeatures]


@dataclass
class CatalogueEmbeddings:
    """
    Embeddings of a catalogue.

    Args:
        image_embeds (`torch.FloatTensor` of shape `(images, projection_dim)`):
            One unit vector a row.
        text_embeds (`torch.FloatTensor` of shape `(texts, projection_dim)`):
            One unit vector for each different text of a product.
        image_products, text_products (`list[str]`):
            The products that they belong to.
        texts (`list[str]`):
            The texts.
        image_tokens, text_tokens (`list[torch.HalfTensor]`, *optional*):
            For each picture and text what a ranking stage reads, (tokens, hidden_size); without padding.
    """

    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    image_products: list[str]
    text_products: list[str]
    texts: list[str]
    image_tokens: list[torch.Tensor] | None = None
    text_tokens: list[torch.Tensor] | None = None


def unique_texts(dataset: datasets.Dataset) -> tuple[list[str], list[str]]:
    """The different texts of each product, in the order of their first row, and the products they belong to."""
    seen = dict.fromkeys(
        (text, product) for texts, product in zip(dataset["texts"], dataset["product"], strict=True) for text in texts
    )
    return [text for text, _ in seen], [product for _, product in seen]


def _batches(rows: int, batch_size: int, description: str, disable_tqdm: bool) -> Iterable[range]:
    with tqdm(total=rows, desc=description, disable=disable_tqdm, unit="row") as bar:
        for first in range(0, rows, batch_size):
            batch = range(first, min(first + batch_size, rows))
            yield batch
            bar.update(len(batch))


@torch.no_grad()
def embed_images(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    batch_size: int = 64,
    disable_tqdm: bool = False,
    vision_features: FeatureLookup | None = None,
    tokens: list[torch.Tensor] | None = None,
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
        tokens (`list`, *optional*):
            A list to which each picture's tokens for a ranking stage are added, (tokens, hidden_size) in half
            precision.

    Returns:
        `torch.FloatTensor` of shape `(images, projection_dim)`: unit vectors on the CPU.
    """

    def inputs(batch: range) -> dict[str, Any]:
        if vision_features is not None:
            return {"vision_features": vision_features(batch)}
        return {"pixel_values": image_inputs(processor, images[batch.start : batch.stop])}

    return _embed(model, inputs, "image", len(images), batch_size, "Embedding pictures", disable_tqdm, tokens)


@torch.no_grad()
def embed_texts(
    model: nn.Module,
    processor: Any,
    texts: Sequence[str],
    batch_size: int = 256,
    disable_tqdm: bool = False,
    text_features: FeatureLookup | None = None,
    tokens: list[torch.Tensor] | None = None,
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

    def inputs(batch: range) -> dict[str, Any]:
        if text_features is not None:
            return {"text_features": text_features(batch)}
        return text_inputs(processor, texts[batch.start : batch.stop], model.config.text_config)

    return _embed(model, inputs, "text", len(texts), batch_size, "Embedding texts", disable_tqdm, tokens)


def _embed(
    model: nn.Module,
    inputs: Callable[[range], dict[str, Any]],
    name: str,
    rows: int,
    batch_size: int,
    description: str,
    disable_tqdm: bool,
    tokens: list[torch.Tensor] | None,
) -> torch.Tensor:
    was_training = model.training
    model.eval()
    embeds = []
    for batch in _batches(rows, batch_size, description, disable_tqdm):
        moved = {
            key: value.to(model.device)
            if isinstance(value, torch.Tensor)
            else FusionMatchTowerFeatures(
                pooled=value.pooled.to(model.device),
                levels=tuple(level.to(model.device) for level in value.levels),
                attention_mask=None if value.attention_mask is None else value.attention_mask.to(model.device),
            )
            for key, value in inputs(batch).items()
        }
        outputs = model(**moved)
        embeds.append(outputs[f"{name}_embeds"].float().cpu())
        if tokens is not None:
            output = outputs.text_model_output if name == "text" else outputs.vision_model_output
            masks = [slice(None)] * len(batch) if output.fusion_mask is None else output.fusion_mask.bool()
            tokens += [row[mask].half().cpu() for row, mask in zip(output.fusion_tokens, masks, strict=True)]
    model.train(was_training)
    return torch.cat(embeds)


def embed_catalogue(
    model: nn.Module,
    processor: Any,
    dataset: datasets.Dataset,
    batch_size: int = 64,
    disable_tqdm: bool = False,
    vision_features: FeatureLookup | None = None,
    text_features: FeatureLookup | None = None,
    keep_tokens: bool = False,
) -> CatalogueEmbeddings:
    """
    Embeds the pictures of a catalogue split and the different texts of its products.

    Args:
        dataset (`datasets.Dataset`):
            Rows with `image`, `texts` and `product`.
        vision_features, text_features (`Callable`, *optional*):
            Cached tower features by row, and by index into [`unique_texts`].
        keep_tokens (`bool`, *optional*, defaults to `False`):
            Whether to keep what a ranking stage reads.

    The other arguments are those of [`embed_images`] and [`embed_texts`].
    """
    texts, text_products = unique_texts(dataset)
    image_tokens, text_tokens = ([], []) if keep_tokens else (None, None)
    return CatalogueEmbeddings(
        image_embeds=embed_images(
            model, processor, dataset["image"], batch_size, disable_tqdm, vision_features, image_tokens
        ),
        text_embeds=embed_texts(model, processor, texts, 4 * batch_size, disable_tqdm, text_features, text_tokens),
        image_products=list(dataset["product"]),
        text_products=text_products,
        texts=texts,
        image_tokens=image_tokens,
        text_tokens=text_tokens,
    )


def evaluate_retrieval(
    model: nn.Module, processor: Any, dataset: datasets.Dataset, ks: Sequence[int] = (1, 5, 10), **kwargs: Any
) -> dict[str, float]:
    """
    Retrieval metrics of a model on a catalogue split, pictures to texts and texts to pictures.

    Args:
        model ([`FusionMatchModel`] or `PeftModel`):
            The model.
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
    embeddings = embed_catalogue(model, processor, dataset, **kwargs)
    return retrieval_metrics(
        embeddings.image_embeds,
        embeddings.text_embeds,
        embeddings.image_products,
        embeddings.text_products,
        ks=tuple(ks),
    )
