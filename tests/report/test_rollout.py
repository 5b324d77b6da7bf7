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
import math

import pytest
from scipy.stats import norm

from fusionmatch.evaluation.queries import Difference
from fusionmatch.report import Rollout, Run
from fusionmatch.report.rollout import (
    Arm,
    Cataloguing,
    Observed,
    PurchaseGoal,
    SearchGoal,
    Test,
    click_test_size,
    plan,
    steps_test_size,
    write_template,
)

from .conftest import PRODUCTS


FIRST, LAST = [1] * PRODUCTS, [20] * PRODUCTS
SEARCH = SearchGoal(searches_per_day=1000, click_through_rate=0.3, smallest_change=0.02)
RIGHT = (50.0, 40.0, 60.0)
WORSE, BETTER = Difference(-60.0, -90.0, -30.0, 0.01), Difference(60.0, 30.0, 90.0, 0.01)


def test_sizes_are_those_of_the_textbooks():
    # Cohen (1988): h is the difference of 2 arcsin(sqrt(p)); n a side = 2 (z_alpha + z_power)^2 / h^2.
    h = 2 * math.asin(math.sqrt(0.32)) - 2 * math.asin(math.sqrt(0.30))
    z = norm.ppf(0.975) + norm.ppf(0.8)
    size = click_test_size(SEARCH, Test())
    assert size.each_side == math.ceil(2 * z**2 / h**2)
    # Both sides, over 1,000 searches a day, in whole weeks.
    assert size.days == 21
    assert click_test_size(SEARCH, Test(share=0.5)).days == 35
    # Cohen's table 2.4.1: 64 a side for a medium effect (d = 0.5), alpha 0.05, power 0.8.
    assert steps_test_size(PurchaseGoal(100, 6, 2.0, 1.0), Test()).each_side == 64


def test_many_parts_looked_at_make_some_look_worse(make_run):
    run = Run.load(make_run("a", LAST, FIRST))
    parts = {f"color = {i}": BETTER for i in range(9)}
    # 0.01 is no surprise among ten (Holm); 0.004 is.
    assert plan(run, Rollout(), RIGHT, parts | {"color = red": WORSE}).start == "go"
    clear = Difference(-60.0, -90.0, -30.0, 0.004)
    sheet = plan(run, Rollout(), RIGHT, parts | {"color = red": clear})
    assert sheet.start == "hold"
    assert [c.detail for c in sheet.offline if c.name == "rule_parts"] == ["color = red"]


def test_a_part_left_blank_is_left_out_and_tiny_tests_have_a_size(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("test:\nsearch:\nmost_left_out: 0\n", encoding="utf-8")
    assert Rollout.load(path) == Rollout(most_left_out=0)
    assert steps_test_size(PurchaseGoal(100, 6, 0.1, 1.0), Test()).each_side == 30
    assert click_test_size(SearchGoal(100, 0.0001, 0.99), Test()).each_side == 30


def test_hours_saved():
    work = Cataloguing(products_per_month=300, minutes_by_hand=6, minutes_to_confirm=1, hourly_cost=30)
    assert work.hours_saved(0.5) == 10
    # Looking at suggestions that are never right costs time.
    assert work.hours_saved(0) == -5


def test_before_a_test_every_condition_must_hold(make_run):
    run = Run.load(make_run("a", LAST, FIRST))
    seen = Run.load(make_run("seen", LAST, FIRST))
    seen.record.seen_products = 3
    assert plan(seen, Rollout(search=SEARCH, known_products=True), RIGHT, {}).start == "go"
    good = plan(run, Rollout(search=SEARCH), RIGHT, {"color = red": BETTER})
    assert good.start == "go"
    assert [condition.holds for condition in good.offline] == [True] * 5
    for sheet, broken in (
        (plan(Run.load(make_run("b", FIRST, FIRST)), Rollout(search=SEARCH), RIGHT, {}), "rule_better"),
        (plan(run, Rollout(search=SEARCH), RIGHT, {"color = red": WORSE}), "rule_parts"),
        (plan(run, Rollout(search=SEARCH, most_left_out=0.01), RIGHT, {}), "rule_left_out"),
        (plan(run, Rollout(search=SEARCH, test=Test(most_days=14)), RIGHT, {}), "rule_days"),
        (plan(seen, Rollout(search=SEARCH), RIGHT, {}), "rule_held_out"),
    ):
        assert sheet.start == "hold"
        assert [condition.name for condition in sheet.offline if not condition.holds] == [broken]
    slow = PurchaseGoal(orders_per_day=2, steps=6, standard_deviation=3, smallest_change=0.5)
    assert plan(run, Rollout(search=SEARCH, purchase=slow), RIGHT, {}).start == "hold"
    assert [condition.name for condition in plan(run, Rollout(), RIGHT, {}).offline] == [
        "rule_better",
        "rule_held_out",
        "rule_parts",
        "rule_left_out",
    ]


@pytest.mark.parametrize(
    ("clicks", "searches", "outcome"),
    [
        (3300, 10000, "go"),
        (3020, 10000, "stop"),  # a difference that chance makes, at the planned size
        (2800, 10000, "stop"),
        (900, 2000, "hold"),  # far better, but before the planned size
        (555, 2000, "hold"),  # worse by what chance makes once in a while, before it
        (400, 2000, "stop"),  # harm beyond doubt does not wait for it
    ],
)
def test_what_the_test_counted_decides(make_run, clicks, searches, outcome):
    run = Run.load(make_run("a", LAST, FIRST))
    counted = Observed(control=Arm(searches, int(0.3 * searches)), new=Arm(searches, clicks))
    sheet = plan(run, Rollout(search=SEARCH, observed=counted), RIGHT, {})
    assert sheet.outcome == outcome
    # Nothing goes on that should not have been begun.
    held = plan(run, Rollout(search=SEARCH, observed=counted), RIGHT, {"color = red": WORSE})
    assert held.outcome == {"go": "hold"}.get(outcome, outcome)
    assert sheet.enough == (searches == 10000)
    change, low, high = sheet.change
    assert change == pytest.approx(clicks / searches - 0.3)
    # Newcombe's interval is close to Wald's at this size.
    se = math.sqrt(0.21 / searches + clicks / searches * (1 - clicks / searches) / searches)
    assert (low, high) == pytest.approx((change - 1.96 * se, change + 1.96 * se), abs=3e-3)


def test_the_template_is_an_example_and_is_not_written_over(tmp_path):
    path = write_template(tmp_path / "rollout.yaml")
    rollout = Rollout.load(path)
    assert rollout.search is not None
    assert rollout.currency == "EUR"
    path.write_text(path.read_text(encoding="utf-8").replace("# observed", "observed").replace("#   ", "  "), "utf-8")
    assert Rollout.load(path).observed.new.clicks == 13136
    with pytest.raises(FileExistsError, match="not written over"):
        write_template(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("serch: {}", "unknown keys serch; there are search"),
        ("search: {searches_per_day: 10}", "`search` lacks click_through_rate, smallest_change"),
        ("search: 7", "`search` must be a mapping"),
        ("search: {searches_per_day: 10, click_through_rate: 30, smallest_change: 0.1}", "at most 1, got 30"),
        ("search: {searches_per_day: 10, click_through_rate: 0.95, smallest_change: 0.1}", "must stay below 1"),
        ("search: {searches_per_day: many, click_through_rate: 0.3, smallest_change: 0.1}", "above 0, got 'many'"),
        ("test: {power: 1}", "`test.power` must be"),
        ("observed: {control: {searches: 5, clicks: 9}, new: {searches: 5, clicks: 1}}", "clicks among them"),
        ("most_left_out: 5", "must be a share"),
        ("most_left_out: 5%", "such as 0.05, got '5%'"),
        ("observed: {control: {searches: 5, clicks: 1}, new: {searches: 5, clicks: 1}}", "fill that in as well"),
        ("search: [", "while parsing"),
        ("- 1", "the file must be a mapping"),
    ],
)
def test_wrong_figures_are_named(tmp_path, content, words):
    path = tmp_path / "r.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"r\.yaml") as error:
        Rollout.load(path)
    assert words in str(error.value)
    with pytest.raises(FileNotFoundError, match="--rollout_template"):
        Rollout.load(tmp_path / "none.yaml")
