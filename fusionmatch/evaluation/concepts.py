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
"""Whether the concepts that a model finds are those that are known of a picture or a text."""

from collections.abc import Sequence
from typing import Any

import datasets
import torch
from torch import nn

from ..outputs_fusionmatch import FusionMatchTowerOutput
from .retrieval import FeatureLookup, embed_images, embed_texts, unique_texts


def r_precision(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """
    The share of the first n items that are known, with n the number of known ones of a row; in percent, the mean over
    rows. 100 where all known items come first.

    Args:
        scores (`torch.FloatTensor` of shape `(rows, items)`):
            Higher comes first; or `(items,)`, the same for all rows.
        labels (`torch.BoolTensor` of shape `(rows, items)`):
            True for known items. Rows without any are left out.

    Returns:
        `float`: in percent; NaN where no row has a known item.
    """
    order = scores.expand(labels.shape).argsort(dim=1, descending=True, stable=True)
    counts = labels.sum(dim=1)
    first = torch.arange(labels.shape[1])[None, :] < counts[:, None]
    shares = (labels.gather(1, order) & first).sum(dim=1) / counts
    return 100 * shares[counts > 0].mean().item()


def evaluate_concepts(
    model: nn.Module,
    processor: Any,
    dataset: datasets.Dataset,
    batch_size: int = 64,
    disable_tqdm: bool = False,
    vision_features: FeatureLookup | None = None,
    text_features: FeatureLookup | None = None,
) -> dict[str, float]:
    """
    R-precision ([`r_precision`]) of the concepts that a model finds in the pictures and texts of a catalogue split.

    Args:
        model ([`FusionMatchModel`] or `PeftModel`):
            A model with concepts.
        processor ([`FusionMatchProcessor`]):
            Its processor.
        dataset (`datasets.Dataset`):
            Rows with `image`, `texts`, `product` and `concepts` ([`~fusionmatch.catalogue.ConceptBank.label`]).

    The other arguments are those of [`~fusionmatch.evaluation.retrieval.embed_catalogue`].

    Returns:
        `dict[str, float]`: in percent, `concepts_image_r_precision`, `concepts_text_r_precision`, and for comparison
        `concepts_frequency_r_precision`: the commonest concepts of this split for every picture.
    """
    words = {word: i for i, word in enumerate(model.config.concept_words)}
    known: dict[tuple[str, str], set[str]] = {}
    for texts, product, concepts in zip(dataset["texts"], dataset["product"], dataset["concepts"], strict=True):
        for text in texts:
            known.setdefault((text, product), set()).update(concepts)

    def table(rows: Sequence[Any]) -> torch.Tensor:
        labels = torch.zeros(len(rows), len(words), dtype=torch.bool)
        for i, row in enumerate(rows):
            labels[i, [words[word] for word in row if word in words]] = True
        return labels

    def found(embed: Any, items: Sequence[Any], size: int, **features: Any) -> torch.Tensor:
        log_probs = torch.empty(len(items), len(words))

        def keep(output: FusionMatchTowerOutput, rows: Sequence[int]) -> None:
            log_probs[list(rows)] = output.concept_log_probs.float().cpu()

        embed(model, processor, items, size, disable_tqdm, collect=keep, **features)
        return log_probs

    of_images = table(dataset["concepts"])
    of_texts = table([known[key] for key in zip(*unique_texts(dataset), strict=True)])
    images = found(embed_images, dataset["image"], batch_size, vision_features=vision_features)
    texts = found(embed_texts, unique_texts(dataset)[0], 4 * batch_size, text_features=text_features)
    return {
        "concepts_image_r_precision": r_precision(images, of_images),
        "concepts_text_r_precision": r_precision(texts, of_texts),
        "concepts_frequency_r_precision": r_precision(of_images.sum(dim=0).float(), of_images),
    }
