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
"""From a similarity to the probability that a first hit is right, or that a picture and a text belong together."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

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
# Texts of other products that a held-out picture is compared with.
_OTHERS = 200
# Hits that the probabilities count for beside the ones that were seen.
_SAID = 10


class Outcomes(NamedTuple):
    """
    What was seen on held-out data, a row each.

    Args:
        features (`np.ndarray` of shape `(n, features)`): What probabilities are made of.
        right (`np.ndarray` of shape `(n,)`): Whether it is right.
        weights (`np.ndarray` of shape `(n,)`): How often it happens; sums to one.
        wanted (`np.ndarray` of shape `(n,)`): Whether a sure one is what is looked for: carried queries, right pairs.
    """

    features: np.ndarray
    right: np.ndarray
    weights: np.ndarray
    wanted: np.ndarray


class HeldOut(Protocol):
    """Held-out queries ([`FirstHits`]) or pairs ([`Pairs`])."""

    def outcomes(self, share: float) -> Outcomes: ...


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

    def outcomes(self, share: float) -> Outcomes:
        """Score of each first hit and its margin to the second product, of such a share of carried queries."""
        n = len(self.own)
        three = -np.sort(-np.column_stack([self.own, self.others]), axis=1)
        features = np.concatenate([_features(three), _features(self.others)])
        right = np.concatenate([self.own > self.others[:, 0], np.zeros(n, dtype=bool)])
        weights = np.repeat([share, 1 - share], n) / n
        happens = weights > 0
        return Outcomes(features[happens], right[happens], weights[happens], (np.arange(2 * n) < n)[happens])


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
class Pairs:
    """
    Similarities of pairs that belong together, and of pairs that do not.

    Args:
        own (`np.ndarray` of shape `(pairs,)`), others (`np.ndarray` of shape `(other pairs,)`):
            Similarities.
        own_weights, others_weights (`np.ndarray` of the same shapes):
            What each counts, so that every picture counts one; they sum to the number of pictures.
    """

    own: np.ndarray
    others: np.ndarray
    own_weights: np.ndarray
    others_weights: np.ndarray

    def outcomes(self, share: float) -> Outcomes:
        """Similarity of each pair, of such a share of pairs that belong together."""
        right = np.arange(len(self.own) + len(self.others)) < len(self.own)
        weights = np.concatenate([share * self.own_weights, (1 - share) * self.others_weights])
        return Outcomes(np.concatenate([self.own, self.others])[:, None], right, weights / weights.sum(), right)


def held_out_pairs(
    image_embeds: torch.Tensor,
    image_products: Sequence[str],
    text_embeds: torch.Tensor,
    text_products: Sequence[str],
    texts: Sequence[str],
) -> Pairs:
    """
    Every held-out picture with the texts of its own product, and with those of others, two hundred drawn where there
    are more. A text that its own product has as well is no other one.

    Args:
        image_embeds, text_embeds (`torch.FloatTensor` of shape `(n, projection_dim)`):
            Unit vectors.
        image_products, text_products (`Sequence[str]`):
            Their products.
        texts (`Sequence[str]`):
            The texts.

    Raises:
        `ValueError`: no picture has both.
    """
    rng = np.random.default_rng(0)
    pictures_of, texts_of = _rows(image_products), _rows(text_products)
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for product, rows in pictures_of.items():
        own = texts_of.get(product, [])
        same = {texts[row] for row in own}
        drawn = rng.choice(len(texts), min(2 * _OTHERS, len(texts)), replace=False)
        other = [row for row in drawn.tolist() if texts[row] not in same][:_OTHERS]
        if own and other:
            for belongs, chosen in ((True, own), (False, other)):
                found[belongs].append((image_embeds[rows] @ text_embeds[chosen].t()).double().numpy())
    if not found[True]:
        raise ValueError(
            "A calibration of pairs needs held-out pictures of at least two products with a text each that is in no "
            "training row. Raise `--validation_size` or `--test_size`, or add products."
        )
    weights = ([np.full(each.size, 1 / each.shape[1]) for each in found[belongs]] for belongs in (True, False))
    flat = (np.concatenate([each.ravel() for each in found[belongs]]) for belongs in (True, False))
    return Pairs(*flat, *map(np.concatenate, weights))


def _rows(products: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each product."""
    rows: dict[str, list[int]] = {}
    for row, product in enumerate(products):
        rows.setdefault(product, []).append(row)
    return rows


class _Thresholds:
    """What calibrations share: thresholds of their probability."""

    thresholds: dict[str, float | None]

    def threshold(self, precision: float) -> float | None:
        """
        The probability from which on what was found counts as right.

        Raises:
            `ValueError`: a precision without a threshold.
        """
        if f"{precision:g}" not in self.thresholds:
            known = ", ".join(self.thresholds)
            raise ValueError(f"There are thresholds for a precision of {known}, not {precision:g}.")
        return self.thresholds[f"{precision:g}"]


@dataclass
class Calibration(_Thresholds):
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
        _check_enough(n, "queries")
        if not 0 < carried <= 1:
            raise ValueError(f"`carried` must be a share in (0, 1], got {carried}.")
        outcomes = hits.outcomes(carried)
        found = cls(*_platt(outcomes, n), carried, n)
        found.thresholds = _thresholds(found.probability(*outcomes.features.T), outcomes, n)
        return found

    @property
    def share(self) -> float:
        """Share of what is looked for, that probabilities are of."""
        return self.carried

    def probability(self, score: np.ndarray | float, margin: np.ndarray | float) -> np.ndarray:
        """Probability in (0, 1) that a first hit of such a similarity and margin is right."""
        return expit(self.score * np.asarray(score) + self.margin * np.asarray(margin) + self.intercept)


@dataclass
class PairCalibration(_Thresholds):
    r"""
    The probability that a picture and a text belong together, $\sigma(a s + c)$ of their similarity s (Platt 1999).

    Args:
        score (`float`):
            a, above 0.
        intercept (`float`):
            c.
        matched (`float`):
            Share of the pairs that belong together, in (0, 1), of those that are judged.
        pictures (`int`):
            Held-out pictures that it was fitted on.
        thresholds (`dict[str, float | None]`):
            For each wanted precision (`"0.95"`) the probability from which on a pair counts as belonging together;
            `None` where no pair was sure enough.
    """

    score: float
    intercept: float
    matched: float
    pictures: int
    thresholds: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def fit(cls, held_out: Pairs, matched: float = 0.5) -> "PairCalibration":
        """
        Fits on held-out pictures, each of them with its own texts and with those of other products.

        Raises:
            `ValueError`: fewer than 20 pictures, or a share that is none.
        """
        n = round(held_out.own_weights.sum())
        _check_enough(n, "pictures")
        if not 0 < matched < 1:
            raise ValueError(f"`matched` must be a share in (0, 1), got {matched}.")
        outcomes = held_out.outcomes(matched)
        found = cls(*_platt(outcomes, n), matched, n)
        found.thresholds = _thresholds(found.probability(outcomes.features[:, 0]), outcomes, n)
        return found

    @property
    def share(self) -> float:
        """Share of what is looked for, that probabilities are of."""
        return self.matched

    def probability(self, score: np.ndarray | float) -> np.ndarray:
        """Probability in (0, 1) that a pair of such a similarity, a cosine, belongs together."""
        return expit(self.score * np.asarray(score) + self.intercept)


def _check_enough(number: int, what: str) -> None:
    if number < FEWEST_QUERIES:
        raise ValueError(
            f"A calibration needs at least {FEWEST_QUERIES} held-out {what}, there are {number}. Raise "
            "`--validation_size`, or add products."
        )


def _platt(outcomes: Outcomes, number: int) -> list[float]:
    """Slopes, above 0, and intercept of a logistic regression on what `number` queries or pictures gave."""
    features, right, weights, _ = outcomes
    centre, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    x = (features - centre) / spread
    # Platt's targets: never quite 0 or 1, so that separable queries do not make it certain.
    positive, negative = number * weights[right].sum(), number * weights[~right].sum()
    target = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(parameters: np.ndarray) -> float:
        logits = x @ np.exp(parameters[:-1]) + parameters[-1]
        return -(weights * (target * log_expit(logits) + (1 - target) * log_expit(-logits))).sum()

    # Above 0: a nearer hit is never less sure. The bounds keep a useless feature from running away.
    bounds = [(-8, 5)] * x.shape[1] + [(-50, 50)]
    *logs, intercept = minimize(loss, np.zeros(len(bounds)), method="L-BFGS-B", bounds=bounds).x
    slopes = np.exp(logs) / spread
    return [*slopes.tolist(), float(intercept - slopes @ centre)]


def _thresholds(probabilities: np.ndarray, outcomes: Outcomes, number: int) -> dict[str, float | None]:
    _, right, weights, _ = outcomes
    return {f"{wanted:g}": _threshold(probabilities, right, weights, number, wanted) for wanted in PRECISIONS}


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


def calibration_error(calibration: Calibration | PairCalibration, held_out: HeldOut, bins: int = 10) -> float:
    """
    Expected calibration error on other held-out queries or pairs (Naeini et al. 2015): how far probabilities and
    shares of right ones lie apart, mean over bins of as many each; in [0, 1].
    """
    features, right, weights, _ = held_out.outcomes(calibration.share)
    probability = calibration.probability(*features.T)
    order = np.argsort(probability)
    probability, right, weights = probability[order], right[order], weights[order]
    part = np.minimum((np.cumsum(weights) - weights / 2) * bins, bins - 1).astype(int)
    gaps = np.bincount(part, weights * (probability - right), minlength=bins)
    return float(np.abs(gaps).sum())


def precision_and_coverage(
    calibration: Calibration | PairCalibration, held_out: HeldOut, precision: float
) -> tuple[float, float]:
    """
    What a threshold does on other held-out queries: of the first hits that pass the share that is right (NaN for
    none), and the share of the carried queries that are answered: whose first hit passes, right or not. Of pairs: of
    those that pass the share that belongs together, and the share of those that belong together that passes.
    """
    threshold = calibration.threshold(precision)
    if threshold is None:
        return float("nan"), 0.0
    features, right, weights, wanted = held_out.outcomes(calibration.share)
    kept = calibration.probability(*features.T) >= threshold
    found = float(weights[kept & right].sum() / weights[kept].sum()) if kept.any() else float("nan")
    return found, float(weights[kept & wanted].sum() / weights[wanted].sum())


class Calibrations(TypedDict, total=False):
    """Those of a model: for texts and for pictures as queries, and for pairs."""

    t2i: Calibration
    i2t: Calibration
    pairs: PairCalibration


def save_calibration(folder: str | Path, calibrations: Calibrations, model: nn.Module) -> Path:
    """Writes the calibrations of a model, by rule into its own folder."""
    path = Path(folder) / CALIBRATION_FILE
    content: dict[str, Any] = {direction: asdict(each) for direction, each in calibrations.items()}
    content["model_fingerprint"] = fingerprint(model, with_adapter=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def load_calibration(folder: str | Path, model: nn.Module) -> Calibrations:
    """
    The calibrations that lie in a folder; empty where there are none. Those of first hits and of pairs that an older
    file does not have are missing.

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
        kinds = Calibrations.__annotations__
        return {name: kinds[name](**values) for name, values in content.items()}
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{path} holds no calibrations as this FusionMatch writes them ({error}). Calibrate anew (`fusionmatch "
            "calibrate`), or remove that file."
        ) from error
