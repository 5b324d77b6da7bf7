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
"""Probabilities are as often right as they say, on queries that they were not fitted on."""

import json

import numpy as np
import pytest
import torch

from fusionmatch.evaluation.calibration import (
    Calibration,
    FirstHits,
    PairCalibration,
    Pairs,
    calibration_error,
    first_hits,
    held_out_pairs,
    load_calibration,
    precision_and_coverage,
    save_calibration,
)

from ..core.tiny import tiny_model


def queries(number, seed):
    """Products on a sphere of 12 dimensions; queries lie more or less near to their own."""
    generator = torch.Generator().manual_seed(seed)
    gallery = torch.randn(600, 12, generator=generator)
    noise = torch.rand(number, 1, generator=generator) * torch.randn(number, 12, generator=generator) * 1.5
    rows = torch.randint(600, (number,), generator=generator)
    asked, offered = (torch.nn.functional.normalize(part, dim=1) for part in (gallery[rows] + noise, gallery))
    return first_hits(asked, [str(row) for row in rows.tolist()], offered, [str(row) for row in range(600)])


@pytest.mark.parametrize("carried", [0.3, 0.8, 1.0])
def test_held_out_queries_are_right_as_often_as_said(carried):
    calibration = Calibration.fit(queries(3000, 0), carried)
    held_out = queries(6000, 1)
    assert calibration_error(calibration, held_out) < 0.05
    for wanted in (0.8, 0.9, 0.95):
        precision, coverage = precision_and_coverage(calibration, held_out, wanted)
        # Three standard errors of some thousand hits.
        assert precision == pytest.approx(wanted, abs=0.03)
        assert 0.02 < coverage < 1
    # The surer, the fewer.
    covered = [precision_and_coverage(calibration, held_out, wanted)[1] for wanted in (0.8, 0.9, 0.95)]
    assert covered == sorted(covered, reverse=True)


def similarities(number, seed, apart=0.3):
    """Pictures with one own text and forty others; similarities are normal, own ones further up."""
    rng = np.random.default_rng(seed)
    own, others = rng.normal(0.4 + apart, 0.15, number), rng.normal(0.4, 0.15, number * 40)
    return Pairs(own, others, np.ones(number), np.full(number * 40, 1 / 40))


@pytest.mark.parametrize("matched", [0.2, 0.5, 0.9])
def test_held_out_pairs_belong_together_as_often_as_said(matched):
    calibration, held_out = PairCalibration.fit(similarities(400, 0), matched), similarities(2000, 1)
    assert calibration_error(calibration, held_out) < 0.05
    # Two normal distributions of one width: the probability is known.
    odds = 0.3 / 0.15**2 * (np.array([0.4, 0.55, 0.7]) - 0.55) + np.log(matched / (1 - matched))
    assert calibration.probability(np.array([0.4, 0.55, 0.7])) == pytest.approx(1 / (1 + np.exp(-odds)), abs=0.05)
    precision, recall = precision_and_coverage(calibration, held_out, 0.95)
    assert precision == pytest.approx(0.95, abs=0.02)
    assert 0.1 < recall < 1
    assert PairCalibration.fit(similarities(400, 0, apart=0), 0.5).threshold(0.95) is None


def test_every_held_out_picture_counts_once_with_its_own_texts_and_with_those_of_others():
    images, texts = torch.eye(3), torch.eye(3)[[0, 1, 1, 2]]
    # `b` has two texts; one of them says what that of `a` says. `c` has no picture of its own, `d` no text.
    found = held_out_pairs(images, ["a", "b", "d"], texts, ["a", "b", "b", "c"], ["red", "blue", "red", "green"])
    assert found.own.tolist() == [1, 1, 1] and found.own_weights.tolist() == [1, 0.5, 0.5]
    assert found.others.tolist() == [0, 0, 0] and found.others_weights.tolist() == [0.5, 0.5, 1]
    _, right, weights, wanted = found.outcomes(0.75)
    assert weights.tolist() == pytest.approx([3 / 8, 3 / 16, 3 / 16, 1 / 16, 1 / 16, 1 / 8])
    assert right.tolist() == wanted.tolist() == [True] * 3 + [False] * 3
    with pytest.raises(ValueError, match="at least two products"):
        held_out_pairs(images[:1], ["a"], texts[:1], ["a"], ["red"])


def test_a_nearer_hit_and_a_larger_margin_are_surer():
    calibration = Calibration.fit(queries(1000, 0))
    assert calibration.probability(0.9, 0.1) > calibration.probability(0.5, 0.1)
    assert calibration.probability(0.9, 0.3) > calibration.probability(0.9, 0.0)
    assert np.all(calibration.probability(np.linspace(-1, 1, 9), 0.1) > 0)


def test_first_hits_take_each_product_by_its_best_item():
    gallery = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1.0], [0.6, 0.8]]), dim=1)
    found = first_hits(torch.tensor([[1.0, 0], [0, 1.0]]), ["b", "gone"], gallery, ["a", "a", "b", "c"])
    assert found.own.tolist() == pytest.approx([0.0])
    assert found.others[0].tolist() == pytest.approx([1.0, 0.6])
    features, right, weights, _ = found.outcomes(0.25)
    assert features[0].tolist() == features[1].tolist() == pytest.approx([1.0, 0.4])
    assert right.tolist() == [False, False] and weights.tolist() == [0.25, 0.75]
    with pytest.raises(ValueError, match="at least three products"):
        first_hits(gallery, "abab", gallery, "abab")


def test_nothing_is_ever_sure_where_hits_are_wrong():
    rng = np.random.default_rng(0)
    hits = FirstHits(rng.uniform(0, 0.5, 100), rng.uniform(0.5, 0.6, (100, 2)))
    calibration = Calibration.fit(hits)
    assert calibration.threshold(0.95) is None
    assert np.isnan(precision_and_coverage(calibration, hits, 0.95)[0])


def test_it_is_kept_beside_the_model(tmp_path):
    calibrations = {"t2i": Calibration.fit(queries(500, 0)), "pairs": PairCalibration.fit(similarities(50, 0))}
    model = tiny_model()
    save_calibration(tmp_path, calibrations, model)
    assert load_calibration(tmp_path, model) == calibrations
    with pytest.raises(ValueError, match=r"made for a model with the fingerprint.*Calibrate anew"):
        load_calibration(tmp_path, tiny_model(seed=1))
    assert json.loads((tmp_path / "calibration.json").read_text())["t2i"]["carried"] == 0.5
    assert load_calibration(tmp_path / "elsewhere", model) == {}


def test_equal_hits_pass_together():
    # Forty alike, half of them right: none of them is surer than the others.
    own, others = np.full(40, 0.9), np.tile([[0.5, 0.4]], (40, 1))
    own[20:], others[20:] = 0.5, [0.9, 0.5]
    calibration = Calibration.fit(FirstHits(own, others), carried=1.0)
    assert calibration.threshold(0.9) is None
    empty = first_hits(torch.eye(3), "xyz", torch.eye(3), "abc")
    assert len(empty.own) == 0


def test_bad_input():
    with pytest.raises(ValueError, match="at least 20 held-out queries, there are 10"):
        Calibration.fit(queries(10, 0))
    with pytest.raises(ValueError, match=r"share in \(0, 1\], got 0"):
        Calibration.fit(queries(50, 0), 0)
    with pytest.raises(ValueError, match="at least 20 held-out pictures, there are 19"):
        PairCalibration.fit(similarities(19, 0))
    with pytest.raises(ValueError, match=r"share in \(0, 1\), got 1"):
        PairCalibration.fit(similarities(50, 0), 1)
    with pytest.raises(ValueError, match=r"precision of 0\.8, 0\.9, 0\.95, 0\.99, not 0\.7"):
        Calibration.fit(queries(50, 0)).threshold(0.7)
