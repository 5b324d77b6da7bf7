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
"""The staged rollout: a shop's own figures in, sizes of the A/B test, hours saved, and go, hold or stop out."""

import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..evaluation.queries import Difference
from .record import Run


TEMPLATE = "rollout.yaml"
GO, HOLD, STOP = "go", "hold", "stop"
_LEVEL = 0.05
# Before its planned size a test is stopped for harm alone, and only beyond doubt (Haybittle and Peto): whoever looks
# every day would else stop one in ten for nothing.
_BEYOND_DOUBT = 0.001
# A week's days differ, so tests run whole weeks.
_WEEK = 7
_FEWEST = 30


def _check(owner: str, values: Any, **bounds: tuple[float, float]) -> None:
    for name, (low, high) in bounds.items():
        value = getattr(values, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
            allowed = f"above {low:g}" if math.isinf(high) else f"above {low:g} and at most {high:g}"
            raise ValueError(f"`{owner}.{name}` must be a number {allowed}, got {value!r}.")


@dataclass
class SearchGoal:
    """Searches a day, share of them with a click, and the least rise of that share that would be worth having."""

    searches_per_day: float
    click_through_rate: float
    smallest_change: float

    def __post_init__(self) -> None:
        _check("search", self, searches_per_day=(0, math.inf), click_through_rate=(0, 1), smallest_change=(0, 1))
        if self.click_through_rate + self.smallest_change >= 1:
            raise ValueError(
                f"`search.click_through_rate` {self.click_through_rate:g} with `search.smallest_change` "
                f"{self.smallest_change:g} on top must stay below 1."
            )


@dataclass
class PurchaseGoal:
    """Orders a day that began with a search, their mean steps, and the least fall that would be worth having."""

    orders_per_day: float
    steps: float
    standard_deviation: float
    smallest_change: float

    def __post_init__(self) -> None:
        many = (0, math.inf)
        _check("purchase", self, orders_per_day=many, steps=many, standard_deviation=many)
        _check("purchase", self, smallest_change=(0, self.steps))


@dataclass
class Cataloguing:
    """Products a month, minutes for each by hand and where the first suggestion is confirmed, and cost of an hour."""

    products_per_month: float
    minutes_by_hand: float
    minutes_to_confirm: float
    hourly_cost: float

    def __post_init__(self) -> None:
        many = (0, math.inf)
        _check("cataloguing", self, products_per_month=many, minutes_by_hand=many, minutes_to_confirm=many)
        _check("cataloguing", self, hourly_cost=many)

    def hours_saved(self, first_right: float) -> float:
        """
        Hours a month where this share of the products, in [0, 1], has the right one as the first suggestion: those
        save the work by hand, and each costs a look at the suggestion.
        """
        minutes = first_right * self.minutes_by_hand - self.minutes_to_confirm
        return self.products_per_month * minutes / 60


@dataclass
class Machine:
    """Cost of the machine that trains."""

    hourly_cost: float

    def __post_init__(self) -> None:
        _check("machine", self, hourly_cost=(0, math.inf))


@dataclass
class Test:
    """The A/B test: share of the visitors that take part, error rates, and how long it may take."""

    # pytest takes it for one of its own otherwise.
    __test__ = False

    share: float = 1.0
    significance: float = 0.05
    power: float = 0.8
    most_days: float = 28

    def __post_init__(self) -> None:
        _check("test", self, share=(0, 1), significance=(0, 0.5), power=(0.5, 0.999), most_days=(0, math.inf))


@dataclass
class Arm:
    """What one side of the test counted so far."""

    searches: int
    clicks: int

    def __post_init__(self) -> None:
        if not all(isinstance(each, int) for each in (self.searches, self.clicks)) or not (
            0 <= self.clicks <= self.searches and self.searches > 0
        ):
            raise ValueError(
                f"`observed` counts whole numbers of searches, and clicks among them, got {self.searches!r} searches "
                f"and {self.clicks!r} clicks."
            )


@dataclass
class Observed:
    """Both sides of the test."""

    control: Arm
    new: Arm


@dataclass
class Rollout:
    """
    What `rollout.yaml` says ([`Rollout.load`]). Each part may be left out; `fusionmatch report --rollout_template
    FILE` writes an example with every part. `path` is the file, where it was read from one.
    """

    search: SearchGoal | None = None
    purchase: PurchaseGoal | None = None
    cataloguing: Cataloguing | None = None
    machine: Machine | None = None
    observed: Observed | None = None
    currency: str = ""
    most_left_out: float = 0.05
    known_products: bool = False
    test: Test = field(default_factory=Test)
    path: Path | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.known_products, bool):
            raise ValueError(f"`known_products` must be true or false, got {self.known_products!r}.")
        share = self.most_left_out
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"`most_left_out` must be a share in [0, 1], such as 0.05, got {share!r}.")
        if self.observed is not None and self.search is None:
            raise ValueError("`observed` is decided on at the size that `search` plans: fill that in as well.")

    @classmethod
    def load(cls, path: str | Path) -> "Rollout":
        """
        Reads the YAML file.

        Raises:
            `FileNotFoundError`: there is none.
            `ValueError`: a key is unknown or missing, or a figure is out of range; the message says which.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no file '{path}' (looked from {Path.cwd()}). "
                f"`fusionmatch report --rollout_template {path}` writes one to fill in."
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            rollout = _build(cls, content or {}, "")
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
        rollout.path = path
        return rollout


_PARTS = {
    "search": SearchGoal,
    "purchase": PurchaseGoal,
    "cataloguing": Cataloguing,
    "machine": Machine,
    "observed": Observed,
    "test": Test,
    "control": Arm,
    "new": Arm,
}


def _build(kind: type, content: Any, name: str) -> Any:
    """A dataclass from a mapping, with every unknown and missing key named."""
    where = f"`{name}`" if name else "the file"
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a mapping of names to figures, got {content!r}.")
    known = {each.name: each for each in dataclasses.fields(kind) if each.init}
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        raise ValueError(f"{where} has the unknown keys {', '.join(unknown)}; there are {', '.join(known)}.")
    needed = [
        key
        for key, each in known.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    missing = [key for key in needed if key not in content]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    # A part whose lines are all commented out is left out.
    values = {
        key: _build(_PARTS[key], value, f"{name}.{key}".lstrip(".")) if key in _PARTS else value
        for key, value in content.items()
        if value is not None or key in needed
    }
    return kind(**values)


def write_template(path: str | Path) -> Path:
    """
    Writes the example to fill in.

    Raises:
        `FileExistsError`: there is such a file; somebody's figures may be in it.
    """
    path = Path(path)
    content = (resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError as error:
        raise FileExistsError(f"'{path}' exists; it is not written over. Name another file.") from error
    return path


@dataclass
class TestSize:
    """How many searches (or orders) each side of the test needs, and the days that takes, in whole weeks."""

    __test__ = False

    each_side: int
    days: int


def _power() -> Any:
    try:
        from statsmodels.stats import power, proportion
    except ImportError as error:
        raise ImportError(
            'The rollout sheet needs statsmodels. Install it with: pip install "fusionmatch[report]".'
        ) from error
    return power, proportion


def _size(each_side: Any, per_day: float) -> TestSize:
    # Where a handful is enough statsmodels finds no solution; fewer than that is no test.
    try:
        whole = max(_FEWEST, math.ceil(float(each_side)))
    except (TypeError, ValueError, OverflowError):
        whole = _FEWEST
    return TestSize(whole, math.ceil(2 * whole / per_day / _WEEK) * _WEEK)


def click_test_size(goal: SearchGoal, test: Test) -> TestSize:
    """Size of a two-sided test of two shares, by Cohen's h (statsmodels)."""
    power, proportion = _power()
    effect = proportion.proportion_effectsize(goal.click_through_rate + goal.smallest_change, goal.click_through_rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = power.NormalIndPower().solve_power(effect, alpha=test.significance, power=test.power)
    return _size(size, goal.searches_per_day * test.share)


def steps_test_size(goal: PurchaseGoal, test: Test) -> TestSize:
    """Size of a two-sided t-test of two means (statsmodels)."""
    power, _ = _power()
    effect = goal.smallest_change / goal.standard_deviation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = power.TTestIndPower().solve_power(effect, alpha=test.significance, power=test.power)
    return _size(size, goal.orders_per_day * test.share)


def _worse(changes: dict[str, Difference]) -> list[str]:
    """Parts that are worse beyond chance, with so many parts looked at (Holm's correction)."""
    ordered = sorted(changes.items(), key=lambda each: each[1].p_value)
    worse = []
    for rank, (part, change) in enumerate(ordered):
        if change.p_value * (len(ordered) - rank) > _LEVEL:
            break
        if change.verdict == "worse":
            worse.append(part)
    return worse


@dataclass
class Condition:
    """One line of the rule: its name in [`words`], whether it holds, its figures, and what it fails by."""

    name: str
    holds: bool
    figures: dict[str, str] = field(default_factory=dict)
    detail: str = ""


@dataclass
class Sheet:
    """
    What follows from a run and a shop's figures.

    Args:
        clicks, steps ([`TestSize`], *optional*): Sizes of the A/B test.
        hours (`tuple[float, float, float]`, *optional*): Hours of cataloguing saved a month, and the ends of their
            interval, from the share of pictures whose own text comes first.
        offline (`list[Condition]`): What must hold before a test.
        start (`str`): `go` to the test where all of that holds, else `hold`.
        change (`tuple[float, float, float]`, *optional*): Observed change of the click-through rate and the ends of
            its interval.
        outcome (`str`, *optional*): `go`, `hold` or `stop` by what the test counted; never `go` where `start` is not.
        enough (`bool`): Whether both sides have as many searches as planned.
    """

    clicks: TestSize | None = None
    steps: TestSize | None = None
    hours: tuple[float, float, float] | None = None
    offline: list[Condition] = field(default_factory=list)
    start: str = HOLD
    change: tuple[float, float, float] | None = None
    outcome: str | None = None
    enough: bool = False


def plan(run: Run, rollout: Rollout, first_right: tuple[float, float, float], changes: dict[str, Difference]) -> Sheet:
    """
    The sheet of a run.

    Args:
        run ([`Run`]): The run.
        rollout ([`Rollout`]): The shop's figures.
        first_right (`tuple[float, float, float]`): Share of the held-out pictures whose own product's text comes
            first, with its interval, in percent.
        changes (`dict[str, Difference]`): Change of RSUM of each part of the catalogue (`color = red`).

    Raises:
        `ImportError`: statsmodels is not installed.
    """
    sheet, test = Sheet(), rollout.test
    worse = _worse(changes)
    if rollout.search is not None:
        sheet.clicks = click_test_size(rollout.search, test)
    if rollout.purchase is not None:
        sheet.steps = steps_test_size(rollout.purchase, test)
    if rollout.cataloguing is not None:
        sheet.hours = tuple(rollout.cataloguing.hours_saved(share / 100) for share in first_right)
    share = 1 - run.record.rows_used / max(1, run.record.rows_read)
    sheet.offline = [
        Condition("rule_better", run.differences["rsum"].verdict == "better"),
        *(
            []
            if rollout.known_products
            else [Condition("rule_held_out", not run.record.seen_products, {"count": f"{run.record.seen_products:,}"})]
        ),
        Condition("rule_parts", not worse, {"count": str(len(changes))}, ", ".join(worse)),
        Condition(
            "rule_left_out",
            share <= rollout.most_left_out,
            {"share": f"{share:.1%}", "most": f"{rollout.most_left_out:.1%}"},
        ),
    ]
    planned = [size for size in (sheet.clicks, sheet.steps) if size is not None]
    if planned:
        longest = max(size.days for size in planned)
        days = {"days": f"{longest:,}", "most": f"{test.most_days:g}"}
        sheet.offline.append(Condition("rule_days", longest <= test.most_days, days))
    sheet.start = GO if all(condition.holds for condition in sheet.offline) else HOLD
    if rollout.observed is not None:
        control, new = rollout.observed.control, rollout.observed.new
        _, proportion = _power()
        arms = (new.clicks, new.searches, control.clicks, control.searches)
        interval = proportion.confint_proportions_2indep
        low, high = interval(*arms, method="newcomb", alpha=test.significance)
        change = new.clicks / new.searches - control.clicks / control.searches
        sheet.change = (change, float(low), float(high))
        sheet.enough = min(control.searches, new.searches) >= sheet.clicks.each_side
        if not sheet.enough:
            harm = interval(*arms, method="newcomb", alpha=_BEYOND_DOUBT)[1] < 0
            sheet.outcome = STOP if harm else HOLD
        elif low <= 0:
            sheet.outcome = STOP
        else:
            sheet.outcome = sheet.start
    return sheet
