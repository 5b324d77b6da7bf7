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
"""How sure a recall, or a difference between two models, is: samples over the products of a test split."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import beta, norm, t


# Of each run the ranks of pictures and of texts, from 1; 0 where there was nothing to find.
Ranks = tuple[torch.Tensor, torch.Tensor]

# Numbers of samples by products at a time, for memory.
_COUNTS = 2**23


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

    def __format__(self, spec: str) -> str:
        """The value with its ends in brackets, each number by `spec`: `+2.0 [-1.0, +5.0]` by `+.1f`."""
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]" if spec else str(self)


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
    Recalls with percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13), expanded for few products as
    Hesterberg has it (2015, arXiv 1411.5279, section 5.3). Products are drawn, with
    replacement and with all their pictures and texts: those of one product stand and fall together. The gallery stays
    as it is. Of recalls, not of differences, the ends reach at least as far as Jeffreys' interval.

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
            How often the interval holds the truth, in (0, 1).
        seed (`int`, *optional*, defaults to 0):
            Of the samples; the same seed draws the same products for every model.

    Returns:
        `dict[str, Interval]`: `i2t_recall@k`, `t2i_recall@k` and their sum `rsum`, in percent.

    Raises:
        `ValueError`: no run, a wrong number of ranks, or nothing to find in one direction.
    """
    found, asked = _by_product(runs, image_products, text_products, ks)
    names = [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in ks]
    sides = [(found, 1)]
    if baseline is not None:
        sides.append((_by_product(baseline, image_products, text_products, ks)[0], -1))
    generator = torch.Generator().manual_seed(seed)
    # The first sample is the split as it is.
    counts, samples = torch.ones(1, len(asked), dtype=torch.float64), []
    while len(samples) <= num_samples:
        # A sample without any query counts as one that found nothing.
        totals = (counts @ asked).clamp(min=1)
        samples += list(sum(sign * 100 * (counts @ part) / totals for part, sign in sides))
        size = min(num_samples + 1 - len(samples), max(1, _COUNTS // len(asked)))
        draws = torch.randint(len(asked), (size, len(asked)), generator=generator)
        counts = torch.zeros(draws.shape, dtype=torch.float64)
        counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    values = torch.stack(samples)
    values = torch.cat([values, values.sum(dim=1, keepdim=True)], dim=1)
    # Of few products samples vary less than other products would: the interval is that of Student's t.
    n = max(2, len(asked))
    tail = norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf((1 + confidence) / 2, n - 1)).item()
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = values[1:].quantile(ends, dim=0) if num_samples else (values[0], values[0])
    found = {
        name: Interval(values[0, i].item(), low[i].item(), high[i].item()) for i, name in enumerate([*names, "rsum"])
    }
    if baseline is None and num_samples > 1:
        tops = [100.0] * len(names) + [100.0 * len(names)]
        for each, top, spread in zip(found.values(), tops, values[1:].std(dim=0).tolist(), strict=True):
            _reach(each, top, spread, n, (1 - confidence) / 2)
    return found


def _reach(interval: Interval, top: float, spread: float, products: int, tail: float) -> None:
    """
    Where nearly all or nearly none is found samples vary too little. The ends then reach as far as those of Jeffreys'
    interval (Brown, Cai and DasGupta 2001) for as many independent products as have this spread (Korn and Graubard
    1998). Products that all agree have none and count as they are; where they find all or nothing, what so many of
    them leave open is said by the exact interval (Clopper and Pearson 1934), as that of Jeffreys is modified for the
    purpose.
    """
    share = interval.value / top
    if 0 < share < 1:
        number = share * (1 - share) * (top / spread) ** 2 if spread > 1e-9 * top else products
        right, wrong = share * number + 0.5, (1 - share) * number + 0.5
        interval.low = min(interval.low, top * beta.ppf(tail, right, wrong).item())
        interval.high = max(interval.high, top * beta.ppf(1 - tail, right, wrong).item())
    elif share == 1:
        interval.low = min(interval.low, top * tail ** (1 / products))
    else:
        interval.high = max(interval.high, top * (1 - tail ** (1 / products)))


def permutation_test(
    runs: Sequence[Ranks],
    baseline: Sequence[Ranks],
    image_products: Sequence[Hashable],
    text_products: Sequence[Hashable],
    *,
    ks: Sequence[int] = (1, 5, 10),
    num_samples: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    r"""
    Paired permutation test of the differences that [`bootstrap_recalls`] gives with a baseline (Fisher 1935; in
    retrieval Smucker, Allan and Carterette 2007): for each product it is tossed which of the two models is which, and
    counted how often the difference becomes as large as it is, either way.

    Args:
        num_samples (`int`, *optional*, defaults to 10,000):
            Tosses; the smallest p-value is `1 / (num_samples + 1)`.

    The other arguments are those of [`bootstrap_recalls`].

    Returns:
        `dict[str, float]`: p-values of each recall and of `rsum`, two-sided.
    """
    (found, asked), (other, _) = (_by_product(each, image_products, text_products, ks) for each in (runs, baseline))
    shares = (found - other) / asked.sum(dim=0)
    shares = torch.cat([shares, shares.sum(dim=1, keepdim=True)], dim=1)
    # A product that nothing differs in looks the same either way.
    shares = shares[(shares != 0).any(dim=1)]
    # Sums in another order differ in their last digits.
    bound = shares.sum(dim=0).abs() - 1e-12
    generator = torch.Generator().manual_seed(seed)
    beyond, left = torch.zeros(shares.shape[1], dtype=torch.long), num_samples
    while left > 0:
        size = min(left, max(1, _COUNTS // max(1, len(shares))))
        signs = 2.0 * torch.randint(2, (size, len(shares)), generator=generator).double() - 1
        beyond += ((signs @ shares).abs() >= bound).sum(dim=0)
        left -= size
    names = [*(f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in ks), "rsum"]
    return {name: (1 + count) / (1 + num_samples) for name, count in zip(names, beyond.tolist(), strict=True)}


def _by_product(
    runs: Sequence[Ranks], image_products: Sequence[Hashable], text_products: Sequence[Hashable], ks: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries of each product that were answered at each depth, mean over the runs, and all that can be answered."""
    if not runs:
        raise ValueError("There is no run to measure. Give the ranks of at least one.")
    products = {product: i for i, product in enumerate(dict.fromkeys([*image_products, *text_products]))}
    found, asked = [], []
    for side, (direction, own) in enumerate((("i2t", image_products), ("t2i", text_products))):
        codes = torch.tensor([products[product] for product in own])
        for ranks in runs:
            if len(ranks[side]) != len(codes):
                raise ValueError(
                    f"A run has {len(ranks[side])} ranks for {direction}, but there are {len(codes)} queries."
                )
        if not (runs[0][side] > 0).any():
            raise ValueError(f"No query of {direction} has anything to find.")
        for k in ks:
            hits = sum(((ranks[side] > 0) & (ranks[side] <= k)).double() for ranks in runs) / len(runs)
            for column, values in ((found, hits), (asked, (runs[0][side] > 0).double())):
                column.append(torch.zeros(len(products), dtype=torch.float64).index_add_(0, codes, values))
    return torch.stack(found, dim=1), torch.stack(asked, dim=1)
