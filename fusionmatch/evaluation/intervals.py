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
"""How sure a recall is: bootstrap over the products of a test split."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch


# Of each run the ranks of pictures and of texts, from 1; 0 where there was nothing to find.
Ranks = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Interval:
    """
    A measured value and the range that it is expected in if other products had been drawn.

    Args:
        value (`float`):
            As measured.
        low, high (`float`):
            Ends of the interval.
    """

    value: float
    low: float
    high: float


def bootstrap_recalls(
    runs: Sequence[Ranks],
    image_products: Sequence[Hashable],
    text_products: Sequence[Hashable],
    *,
    baseline: Sequence[Ranks] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    num_samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    r"""
    Recalls with percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13). Products are drawn, with
    replacement and with all their pictures and texts: those of one product stand and fall together. The gallery stays
    as it is.

    Args:
        runs (`Sequence[tuple]`):
            Ranks of pictures and of texts for each training run (each seed); recalls are means over the runs.
        image_products, text_products (`Sequence`):
            Products of the pictures and texts.
        baseline (`Sequence[tuple]`, *optional*):
            Ranks of the runs of another model on the same queries. The values are then the differences to it, query
            by query, which vary far less than the two recalls do.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`):
            Depths of recall.
        num_samples (`int`, *optional*, defaults to 2000):
            Bootstrap samples.
        confidence (`float`, *optional*, defaults to 0.95):
            Share of the samples within the interval.
        seed (`int`, *optional*, defaults to 0):
            Of the samples; the same seed draws the same products for every model.

    Returns:
        `dict[str, Interval]`: `i2t_recall@k`, `t2i_recall@k` and their sum `rsum`, in percent.

    Raises:
        `ValueError`: no run, a wrong number of ranks, or nothing to find in one direction.
    """
    products = {product: i for i, product in enumerate(dict.fromkeys([*image_products, *text_products]))}
    codes = [torch.tensor([products[p] for p in side]) for side in (image_products, text_products)]
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(products), (num_samples, len(products)), generator=generator)
    # How often each sample holds each product; the first row is the split as it is.
    counts = torch.ones(num_samples + 1, len(products), dtype=torch.float64)
    counts[1:] = 0
    counts[1:].scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    values = _recalls(runs, codes, counts, ks)
    if baseline is not None:
        other = _recalls(baseline, codes, counts, ks)
        values = {name: values[name] - other[name] for name in values}
    values["rsum"] = sum(values.values())
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return {
        name: Interval(samples[0].item(), *samples[1:].quantile(ends).tolist()) for name, samples in values.items()
    }


def _recalls(
    runs: Sequence[Ranks], codes: list[torch.Tensor], counts: torch.Tensor, ks: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Recalls in each sample, (samples,), in percent."""
    if not runs:
        raise ValueError("There is no run to measure. Give the ranks of at least one.")
    values = {}
    for side, direction in enumerate(("i2t", "t2i")):
        for ranks in runs:
            if len(ranks[side]) != len(codes[side]):
                raise ValueError(
                    f"A run has {len(ranks[side])} ranks for {direction}, but there are {len(codes[side])} queries."
                )
        asked = torch.zeros(counts.shape[1], dtype=torch.float64)
        asked.index_add_(0, codes[side], (runs[0][side] > 0).double())
        if not asked.any():
            raise ValueError(f"No query of {direction} has anything to find.")
        for k in ks:
            found = torch.zeros_like(asked)
            for ranks in runs:
                hits = (ranks[side] > 0) & (ranks[side] <= k)
                found.index_add_(0, codes[side], hits.double() / len(runs))
            # A sample without any query counts as one that found nothing.
            values[f"{direction}_recall@{k}"] = 100 * (counts @ found) / (counts @ asked).clamp(min=1)
    return values
