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
"""From a similarity to the probability that the first hit of a search is right, and to *not carried*."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from torch import nn

from ..loading import fingerprint


CALIBRATION_FILE = "calibration.json"
PRECISIONS = (0.8, 0.9, 0.95, 0.99)
FEWEST_QUERIES = 20
_ROWS = 1024
# Hits that the probabilities count for beside the ones that were seen.
_SAID = 10


@dataclass
class FirstHits:
    """
    What the first hit of each query would be if its product is carried, and if it is not.

    Args:
        own (`np.ndarray` of shape `(queries,)`):
            Similarity of the best item of the query's own product.
        others (`np.ndarray` of shape `(queries, 2)`):
            Similarities of the two best other products, each by its best item.
    """

    own: np.ndarray
    others: np.ndarray

    def outcomes(self, carried: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Score of each first hit and its margin to the second product, (2 * queries, 2); whether it is right; how often
        it happens, which sums to one.
        """
        n = len(self.own)
        three = -np.sort(-np.column_stack([self.own, self.others]), axis=1)
        features = np.concatenate([_features(three), _features(self.others)])
        right = np.concatenate([self.own > self.others[:, 0], np.zeros(n, dtype=bool)])
        weights = np.concatenate([np.full(n, carried), np.full(n, 1 - carried)]) / n
        happens = weights > 0
        return features[happens], right[happens], weights[happens]


def _features(best: np.ndarray) -> np.ndarray:
    return np.column_stack([best[:, 0], best[:, 0] - best[:, 1]])


def first_hits(
    query_embeds: torch.Tensor,
    query_products: Sequence[str],
    gallery_embeds: torch.Tensor,
    gallery_products: Sequence[str],
) -> FirstHits:
    """
    The best items of each query's own product and of the two best others. Queries without an own item are left out.

    Args:
        query_embeds, gallery_embeds (`torch.FloatTensor` of shape `(n, projection_dim)`):
            Unit vectors.
        query_products, gallery_products (`Sequence[str]`):
            Their products.

    Raises:
        `ValueError`: the gallery holds fewer than three products.
    """
    codes = {product: i for i, product in enumerate(dict.fromkeys(gallery_products))}
    if len(codes) < 3:
        raise ValueError(f"A calibration needs at least three products to choose from, there are {len(codes)}.")
    offered = torch.tensor([codes[product] for product in gallery_products])
    kept = [row for row, product in enumerate(query_products) if product in codes]
    asked = torch.tensor([codes[query_products[row]] for row in kept], dtype=torch.long)
    own, others = [query_embeds.new_empty(0)], [query_embeds.new_empty(0, 2)]
    for part in torch.arange(len(kept)).split(_ROWS):
        scores = query_embeds[torch.tensor(kept, dtype=torch.long)[part]] @ gallery_embeds.t()
        best = scores.new_full((len(part), len(codes)), -torch.inf)
        best.scatter_reduce_(1, offered.expand(len(part), -1), scores, reduce="amax")
        own.append(best.gather(1, asked[part, None]).flatten())
        others.append(best.scatter(1, asked[part, None], -torch.inf).topk(2, dim=1).values)
    return FirstHits(torch.cat(own).double().numpy(), torch.cat(others).double().numpy())


@dataclass
class Calibration:
    r"""
    The probability that the first hit of a search is right, $\sigma(a s + b m + c)$ of its similarity s and its margin
    m to the second product (Platt 1999, with the margin besides: alone, a similarity hardly tells the right product
    from one that is nearly the same).

    Args:
        score, margin (`float`):
            a and b, above 0.
        intercept (`float`):
            c.
        carried (`float`):
            Share of the searches that look for something the catalogue has, in (0, 1].
        queries (`int`):
            Held-out queries that it was fitted on.
        thresholds (`dict[str, float | None]`):
            For each wanted precision (`"0.95"`) the probability from which on a first hit counts as carried; `None`
            where no hit of the queries was sure enough.
    """

    score: float
    margin: float
    intercept: float
    carried: float
    queries: int
    thresholds: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def fit(cls, hits: FirstHits, carried: float = 0.5) -> "Calibration":
        """
        Fits on held-out queries, each of them once as carried and once as not.

        Raises:
            `ValueError`: fewer than 20 queries, or a share that is none.
        """
        n = len(hits.own)
        if n < FEWEST_QUERIES:
            raise ValueError(
                f"A calibration needs at least {FEWEST_QUERIES} held-out queries, there are {n}. Raise "
                "`--validation_size`, or add products."
            )
        if not 0 < carried <= 1:
            raise ValueError(f"`carried` must be a share in (0, 1], got {carried}.")
        features, right, weights = hits.outcomes(carried)
        centre, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        x = (features - centre) / spread
        # Platt's targets: never quite 0 or 1, so that separable queries do not make it certain.
        positive, negative = n * weights[right].sum(), n * weights[~right].sum()
        target = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))

        def loss(parameters: np.ndarray) -> float:
            logits = x @ np.exp(parameters[:2]) + parameters[2]
            return -(weights * (target * log_expit(logits) + (1 - target) * log_expit(-logits))).sum()

        # Above 0: a nearer hit is never less sure. The bounds keep a useless feature from running away.
        bounds = [(-8, 5), (-8, 5), (-50, 50)]
        *logs, intercept = minimize(loss, np.zeros(3), method="L-BFGS-B", bounds=bounds).x
        slopes = np.exp(logs) / spread
        found = cls(*slopes.tolist(), float(intercept - slopes @ centre), carried, n)
        probabilities = found.probability(*features.T)
        found.thresholds = {
            f"{wanted:g}": _threshold(probabilities, right, weights, n, wanted) for wanted in PRECISIONS
        }
        return found

    def probability(self, score: np.ndarray | float, margin: np.ndarray | float) -> np.ndarray:
        """Probability in (0, 1) that a first hit of such a similarity and margin is right."""
        return expit(self.score * np.asarray(score) + self.margin * np.asarray(margin) + self.intercept)

    def threshold(self, precision: float) -> float | None:
        """
        The probability from which on a first hit counts as carried.

        Raises:
            `ValueError`: a precision without a threshold.
        """
        if f"{precision:g}" not in self.thresholds:
            known = ", ".join(self.thresholds)
            raise ValueError(f"There are thresholds for a precision of {known}, not {precision:g}.")
        return self.thresholds[f"{precision:g}"]


def _threshold(
    probabilities: np.ndarray, right: np.ndarray, weights: np.ndarray, queries: int, wanted: float
) -> float | None:
    """
    The lowest probability from which on hits are right as often as wanted: as they were, with what the probabilities
    say as ten hits more, so that a handful of right ones is not taken for certainty.
    """
    order = np.argsort(-probabilities)
    hits = np.cumsum(weights[order]) * queries
    said = np.cumsum((weights * probabilities)[order]) * queries / hits
    were = np.cumsum((weights * right)[order]) * queries
    # Equal ones pass together.
    ends = np.append(np.diff(probabilities[order]) != 0, True)
    enough = np.nonzero(ends & ((were + _SAID * said) / (hits + _SAID) >= wanted))[0]
    return float(probabilities[order][enough[-1]]) if len(enough) else None


def calibration_error(calibration: Calibration, hits: FirstHits, bins: int = 10) -> float:
    """
    Expected calibration error on other held-out queries (Naeini et al. 2015): how far probabilities and shares of
    right hits lie apart, mean over bins of as many hits each; in [0, 1].
    """
    features, right, weights = hits.outcomes(calibration.carried)
    probability = calibration.probability(*features.T)
    order = np.argsort(probability)
    probability, right, weights = probability[order], right[order], weights[order]
    part = np.minimum((np.cumsum(weights) - weights / 2) * bins, bins - 1).astype(int)
    gaps = np.bincount(part, weights * (probability - right), minlength=bins)
    return float(np.abs(gaps).sum())


def precision_and_coverage(calibration: Calibration, hits: FirstHits, precision: float) -> tuple[float, float]:
    """
    What a threshold does on other held-out queries: of the first hits that pass the share that is right (NaN for
    none), and the share of the carried queries that are answered: whose first hit passes, right or not.
    """
    threshold = calibration.threshold(precision)
    if threshold is None:
        return float("nan"), 0.0
    features, right, weights = hits.outcomes(calibration.carried)
    kept = calibration.probability(*features.T) >= threshold
    found = float(weights[kept & right].sum() / weights[kept].sum()) if kept.any() else float("nan")
    return found, float(kept[: len(hits.own)].mean())


def save_calibration(folder: str | Path, calibrations: dict[str, Calibration], model: nn.Module) -> Path:
    """Writes the calibrations of `t2i` and `i2t` of a model, by rule into its own folder."""
    path = Path(folder) / CALIBRATION_FILE
    content: dict[str, Any] = {direction: asdict(each) for direction, each in calibrations.items()}
    content["model_fingerprint"] = fingerprint(model, with_adapter=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def load_calibration(folder: str | Path, model: nn.Module) -> dict[str, Calibration]:
    """
    The calibrations that lie in a folder; empty where there are none.

    Raises:
        `ValueError`: they were made for a model with other weights, or are no calibrations.
    """
    path = Path(folder) / CALIBRATION_FILE
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    made_for, found = content.pop("model_fingerprint", None), fingerprint(model, with_adapter=True)
    if made_for != found:
        raise ValueError(
            f"{path} was made for a model with the fingerprint {made_for}, this one has {found}. Calibrate anew "
            "(`fusionmatch calibrate`), or remove that file."
        )
    try:
        return {direction: Calibration(**values) for direction, values in content.items()}
    except TypeError as error:
        raise ValueError(
            f"{path} holds no calibrations as this FusionMatch writes them ({error}). Calibrate anew (`fusionmatch "
            "calibrate`), or remove that file."
        ) from error
