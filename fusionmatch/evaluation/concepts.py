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
from .retrieval import embed_catalogue, unique_texts


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


class ConceptCollector:
    """Keeps the log-probabilities of the concepts of each item, from batches of outputs."""

    def __init__(self) -> None:
        self._found: dict[int, torch.Tensor] = {}

    def __call__(self, output: FusionMatchTowerOutput, rows: Sequence[int]) -> None:
        self._found.update(zip(rows, output.concept_log_probs.float().cpu(), strict=True))

    @property
    def log_probs(self) -> torch.Tensor:
        """In the order of the rows, (items, concepts)."""
        return torch.stack([self._found[row] for row in range(len(self._found))])


def concept_metrics(
    words: Sequence[str], dataset: datasets.Dataset, images: torch.Tensor, texts: torch.Tensor
) -> dict[str, float]:
    """
    R-precision ([`r_precision`]) of the concepts found in the pictures and texts of a catalogue split.

    Args:
        words (`Sequence[str]`):
            The concepts.
        dataset (`datasets.Dataset`):
            Rows with `texts`, `product` and `concepts` ([`~fusionmatch.catalogue.ConceptBank.label`]).
        images, texts (`torch.FloatTensor` of shape `(images, concepts)` and `(texts, concepts)`):
            Probabilities of the concepts or their logarithms, for the rows and for the
            [`~fusionmatch.evaluation.retrieval.unique_texts`] of the dataset.

    Returns:
        `dict[str, float]`: in percent, `concepts_image_r_precision`, `concepts_text_r_precision`, and for comparison
        `concepts_frequency_r_precision`: the commonest concepts of this split for every picture. Empty where the rows
        name none of the words.
    """
    index = {word: i for i, word in enumerate(words)}
    known: dict[tuple[str, str], set[str]] = {}
    for own_texts, product, concepts in zip(dataset["texts"], dataset["product"], dataset["concepts"], strict=True):
        for text in own_texts:
            known.setdefault((text, product), set()).update(concepts or ())

    def table(rows: Sequence[Any]) -> torch.Tensor:
        labels = torch.zeros(len(rows), len(index), dtype=torch.bool)
        for i, row in enumerate(rows):
            labels[i, [index[word] for word in row or () if word in index]] = True
        return labels

    of_images = table(dataset["concepts"])
    if not of_images.any():
        return {}
    of_texts = table([known[key] for key in zip(*unique_texts(dataset), strict=True)])
    return {
        "concepts_image_r_precision": r_precision(images, of_images),
        "concepts_text_r_precision": r_precision(texts, of_texts),
        "concepts_frequency_r_precision": r_precision(of_images.sum(dim=0).float(), of_images),
    }


def evaluate_concepts(model: nn.Module, processor: Any, dataset: datasets.Dataset, **kwargs: Any) -> dict[str, float]:
    """
    [`concept_metrics`] of a model with concepts; `kwargs` go to
    [`~fusionmatch.evaluation.retrieval.embed_catalogue`].
    """
    found = ConceptCollector(), ConceptCollector()
    embed_catalogue(model, processor, dataset, collect=found, ranking_top_k=0, **kwargs)
    return concept_metrics(model.config.concept_words, dataset, *(each.log_probs for each in found))
