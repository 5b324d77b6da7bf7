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
import pytest
import torch
from scipy.stats import beta

from fusionmatch.evaluation import intervals as module
from fusionmatch.evaluation.intervals import bootstrap_recalls, permutation_test
from fusionmatch.evaluation.ranking import rank_of_first_relevant, retrieval_metrics


def ranks_of(hits):
    return torch.where(torch.as_tensor(hits), 1, 50)


def test_values_are_those_of_the_metrics():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(30, 8, generator=generator), torch.randn(60, 8, generator=generator)
    image_products, text_products = [i // 2 for i in range(30)], [i // 3 for i in range(60)]
    metrics = retrieval_metrics(images, texts, image_products, text_products)
    run = (
        rank_of_first_relevant(images, texts, image_products, text_products),
        rank_of_first_relevant(texts, images, text_products, image_products),
    )
    assert 0 in run[1]  # texts of products without a picture have nothing to find
    found = bootstrap_recalls([run], image_products, text_products, num_samples=10)
    for name, interval in found.items():
        assert interval.value == pytest.approx(metrics[name])


def test_the_interval_of_independent_queries_is_the_binomial_one():
    n, share = 400, 0.3
    hits = torch.arange(n) < share * n
    found = bootstrap_recalls([(ranks_of(hits), ranks_of(hits))], range(n), range(n), num_samples=20000)
    error = 100 * (share * (1 - share) / n) ** 0.5
    interval = found["i2t_recall@1"]
    assert interval.value == pytest.approx(30)
    assert interval.high - interval.value == pytest.approx(1.96 * error, rel=0.05)
    assert interval.value - interval.low == pytest.approx(1.96 * error, rel=0.05)


def test_queries_of_one_product_stand_and_fall_together():
    hits = torch.arange(400) // 10 % 2 == 0
    alone = bootstrap_recalls([(ranks_of(hits), ranks_of(hits))], range(400), range(400))["i2t_recall@1"]
    groups = [i // 10 for i in range(400)]
    together = bootstrap_recalls([(ranks_of(hits), ranks_of(hits))], groups, groups)["i2t_recall@1"]
    # Ten alike count as one: the interval is wider by the root of ten.
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(10**0.5, rel=0.1)


def test_differences_are_taken_query_by_query():
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(500, generator=generator) < 0.5
    after = before | (torch.arange(500) % 25 == 0)
    runs = [(ranks_of(side), ranks_of(side)) for side in (after, before)]
    difference = bootstrap_recalls(runs[:1], range(500), range(500), baseline=runs[1:])["rsum"]
    values = [bootstrap_recalls([run], range(500), range(500))["rsum"] for run in runs]
    assert difference.value == pytest.approx(values[0].value - values[1].value)
    # Each of the two is uncertain by far more than their difference, which is surely above nothing.
    assert difference.low > 0
    assert difference.high - difference.low < (values[0].high - values[0].low) / 3


def test_several_runs_are_averaged():
    one, two = torch.tensor([1, 9, 9, 9]), torch.tensor([1, 1, 9, 9])
    found = bootstrap_recalls([(one, one), (two, two)], range(4), range(4), num_samples=5)
    assert found["t2i_recall@1"].value == pytest.approx(37.5)


def test_memory_does_not_change_the_interval(monkeypatch):
    hits = torch.arange(100) % 3 == 0
    found = bootstrap_recalls([(ranks_of(hits), ranks_of(hits))], range(100), range(100))
    monkeypatch.setattr(module, "_COUNTS", 700)
    again = bootstrap_recalls([(ranks_of(hits), ranks_of(hits))], range(100), range(100))
    assert again["rsum"].value == found["rsum"].value
    assert again["rsum"].low == pytest.approx(found["rsum"].low, abs=8)


def test_the_permutation_test_is_the_exact_one():
    # Four products differ, three of them for the better: of the 16 tosses 2 * (1 + 4) lie as far from nothing.
    before = torch.tensor([9, 9, 9, 1, 1, 1])
    after = torch.tensor([1, 1, 1, 9, 1, 1])
    found = permutation_test([(after, after)], [(before, before)], range(6), range(6), num_samples=40_000)
    assert found["i2t_recall@1"] == pytest.approx(10 / 16, abs=0.01)
    assert found["rsum"] == pytest.approx(10 / 16, abs=0.01)
    # One gain and the loss are of one product and cancel; two products differ, so 2 of 4 tosses.
    found = permutation_test([(after, after)], [(before, before)], [0, 1, 2, 2, 4, 5], [0, 1, 2, 2, 4, 5])
    assert found["t2i_recall@1"] == pytest.approx(2 / 4, abs=0.02)


def test_the_same_model_twice_does_not_differ():
    ranks = torch.tensor([1, 5, 7, 30])
    found = permutation_test([(ranks, ranks)], [(ranks, ranks)], range(4), range(4), num_samples=50)
    assert set(found.values()) == {1.0}


def test_two_models_of_one_kind_differ_as_often_as_the_level_says():
    """Simulated: products differ in how hard they are, models in chance alone."""
    generator = torch.Generator().manual_seed(0)
    significant, covered, repeats, products = 0, 0, 400, 120
    own = torch.arange(products).repeat_interleave(2).tolist()

    def run(hard):
        return tuple(1 + (torch.rand(2 * products, generator=generator) * 40 * hard[own]).long() for _ in range(2))

    for _ in range(repeats):
        hard = torch.rand(products, generator=generator)
        one, two = run(hard), run(hard)
        significant += permutation_test([one], [two], own, own, num_samples=400)["rsum"] <= 0.05
        difference = bootstrap_recalls([one], own, own, baseline=[two], num_samples=400)["rsum"]
        covered += difference.low <= 0 <= difference.high
    # Three standard errors of a share of 400, and neither never nor always.
    assert significant / repeats == pytest.approx(0.05, abs=0.033)
    assert covered / repeats == pytest.approx(0.95, abs=0.033)


def test_products_that_all_agree_leave_something_open():
    hits = torch.ones(30, dtype=torch.bool)
    found = bootstrap_recalls([(ranks_of(hits), ranks_of(~hits))], range(30), range(30))
    # Of 30 out of 30, 88.4 % are still likely (Clopper and Pearson).
    assert (found["i2t_recall@1"].low, found["i2t_recall@1"].high) == pytest.approx((88.43, 100), abs=0.01)
    assert (found["t2i_recall@1"].low, found["t2i_recall@1"].high) == pytest.approx((0, 11.57), abs=0.01)


def test_nearly_all_reaches_as_far_as_the_interval_of_jeffreys():
    hits = torch.arange(60) > 1
    found = bootstrap_recalls([(ranks_of(hits), ranks_of(~hits))], range(60), range(60))
    # Of 58 out of 60; the percentiles alone would end at 91.7.
    assert found["i2t_recall@1"].low == pytest.approx(100 * beta.ppf(0.025, 58.5, 2.5), abs=0.5)
    assert found["t2i_recall@1"].high == pytest.approx(100 * beta.ppf(0.975, 2.5, 58.5), abs=0.5)
    assert 88.5 < found["i2t_recall@1"].low < 90


def test_bad_input():
    ranks = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="no run"):
        bootstrap_recalls([], [0, 1], [0, 1])
    with pytest.raises(ValueError, match="2 ranks for t2i, but there are 3"):
        bootstrap_recalls([(ranks, ranks)], [0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="anything to find"):
        bootstrap_recalls([(ranks, torch.zeros(2))], [0, 1], [0, 1])
