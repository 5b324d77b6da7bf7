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
"""Cost and time of a run, and the sheet of the staged rollout, in words."""

from typing import Any

from markupsafe import Markup

from ..evaluation.queries import columns_to_divide_by
from ..training.pipeline import METRICS_FILE, QUERIES_FILE
from .record import RECORD_FILE, Run
from .rollout import TEMPLATE, Condition, Rollout, Sheet
from .sources import BOTH_FILES, Sources, rows_of, say
from .words import Words


# What each KPI is made of, in the rollout file.
_TEST = ("test.significance", "test.power", "test.share")
_SEARCH = ("search.searches_per_day", "search.click_through_rate", "search.smallest_change")
_PURCHASE = ("purchase.orders_per_day", "purchase.standard_deviation", "purchase.smallest_change")
_BY_HAND = ("cataloguing.products_per_month", "cataloguing.minutes_by_hand")
_SAVED = (*_BY_HAND, "cataloguing.minutes_to_confirm", "cataloguing.hourly_cost", "currency")
_OBSERVED = tuple(f"observed.{side}.{name}" for side in ("new", "control") for name in ("clicks", "searches"))


def rollout_name(rollout: Rollout) -> str:
    """The name of the file that a rollout was read from."""
    return TEMPLATE if rollout.path is None else rollout.path.name


def _own(rollout: Rollout, *fields: str) -> list[str]:
    return [f"{rollout_name(rollout)}: {name}" for name in fields]


def cost_rows(run: Run, rollout: Rollout | None, t: Words, cite: Sources) -> dict[str, Any]:
    """Rows of name and value."""
    metrics = run.metrics
    trained, parameters = (metrics[name] for name in ("trainable_parameters", "parameters"))
    seconds = f"{METRICS_FILE}: training_seconds"
    rows = [
        (
            t("cost_time"),
            say(
                t,
                "cost_time_value",
                minutes=cite.cite(f"{metrics['training_seconds'] / 60:.1f}", f"{seconds} / 60"),
                steps=cite.cite(f"{metrics['steps']:,}", f"{METRICS_FILE}: steps"),
                machine=cite.cite(run.record.machine, f"{RECORD_FILE}: machine"),
            ),
        ),
        (
            t("cost_weights"),
            say(
                t,
                "cost_weights_value",
                trained=cite.cite(f"{trained:,}", f"{METRICS_FILE}: trainable_parameters"),
                parameters=cite.cite(f"{parameters:,}", f"{METRICS_FILE}: parameters"),
                share=cite.cite(f"{trained / parameters:.1%}", f"{METRICS_FILE}: trainable_parameters / parameters"),
            ),
        ),
    ]
    if rollout is not None and rollout.machine is not None:
        cost = metrics["training_seconds"] / 3600 * rollout.machine.hourly_cost
        value = t("cost_money_value", cost=f"{cost:,.2f}", currency=rollout.currency)
        places = f"{seconds} / 3600", *_own(rollout, "machine.hourly_cost", "currency")
        rows.append((t("cost_money"), cite.cite(value, *places)))
    return {"cost": rows, "cost_from": cite.line()}


def sheet_rows(sheet: Sheet, run: Run, rollout: Rollout, t: Words, recall: float, cite: Sources) -> dict[str, Any]:
    """The rollout sheet."""
    test, parts = rollout.test, ", ".join(columns_to_divide_by(run.after))
    size = {"significance": f"{test.significance:g}", "power": f"{test.power:g}", "share": f"{test.share:.0%}"}
    kpis = _kpis(sheet, run, rollout, t, recall, cite)
    size_note = {
        name: cite.cite(each, *_own(rollout, field)) for (name, each), field in zip(size.items(), _TEST, strict=True)
    }
    observed = Markup("{}").format(t("observed_none"))
    if rollout.observed is not None and sheet.change is not None:
        rates = {
            side: f"{arm.clicks / arm.searches:.2%}"
            for side, arm in (("new", rollout.observed.new), ("control", rollout.observed.control))
        }
        change, low, high = (f"{100 * each:+.2f}" for each in sheet.change)
        enough = "" if sheet.enough else t("observed_not_enough")
        said = t("observed", **rates, change=change, low=low, high=high, enough=enough)
        observed = cite.cite(said, *_own(rollout, *_OBSERVED, "test.significance"))
    return {
        "kpis": kpis,
        "size_note": say(t, "size_note", **size_note),
        "offline": [_condition(each, parts, run, rollout, t, cite) for each in sheet.offline],
        "start": sheet.start,
        "observed": observed,
        "outcome": sheet.outcome,
        "from": Markup("{}. {}").format(cite.line(), t("rollout_defaults")),
    }


def _kpis(sheet: Sheet, run: Run, rollout: Rollout, t: Words, recall: float, cite: Sources) -> list[tuple[Any, ...]]:
    def cell(value: str, *fields: str) -> Markup:
        return cite.cite(value, *_own(rollout, *fields))

    kpis: list[tuple[Any, ...]] = []
    if rollout.search is not None and sheet.clicks is not None:
        goal = rollout.search
        kpis.append(
            (
                t("kpi_clicks"),
                t("kpi_clicks_formula"),
                cell(f"{100 * goal.click_through_rate:.3g} %", "search.click_through_rate"),
                cell(t("points", points=f"{100 * goal.smallest_change:+.3g}"), "search.smallest_change"),
                cell(
                    t("size_searches", count=f"{sheet.clicks.each_side:,}", days=sheet.clicks.days), *_SEARCH, *_TEST
                ),
            )
        )
    if rollout.purchase is not None and sheet.steps is not None:
        orders = rollout.purchase
        kpis.append(
            (
                t("kpi_steps"),
                t("kpi_steps_formula"),
                cell(
                    f"{orders.steps:g} ± {orders.standard_deviation:g}",
                    "purchase.steps",
                    "purchase.standard_deviation",
                ),
                cell(f"−{orders.smallest_change:g}", "purchase.smallest_change"),
                cell(t("size_orders", count=f"{sheet.steps.each_side:,}", days=sheet.steps.days), *_PURCHASE, *_TEST),
            )
        )
    if rollout.cataloguing is not None and sheet.hours is not None:
        work = rollout.cataloguing
        saved, low, high = (f"{each:,.1f}" for each in sheet.hours)
        money = f"{sheet.hours[0] * work.hourly_cost:,.0f}"
        first_right = rows_of(run.after, "i2t_recall@1", t)
        count = f"{len(run.after.side('t2i', 'query')):,}"
        of_texts = f"{QUERIES_FILE}: query (direction = t2i: {t('rows_count', count=count)})"
        kpis.append(
            (
                t("kpi_hours"),
                t("kpi_hours_formula"),
                cell(
                    t("kpi_hours_today", hours=f"{work.products_per_month * work.minutes_by_hand / 60:,.1f}"),
                    *_BY_HAND,
                ),
                cite.cite(
                    t("kpi_hours_saved", saved=saved, low=low, high=high, money=money, currency=rollout.currency),
                    first_right,
                    *_own(rollout, *_SAVED),
                ),
                say(
                    t,
                    "kpi_hours_note",
                    recall=cite.cite(f"{recall:.1f}", first_right),
                    texts=cite.cite(count, of_texts),
                ),
            )
        )
    return kpis


def _condition(
    each: Condition, parts: str, run: Run, rollout: Rollout, t: Words, cite: Sources
) -> tuple[Markup, bool, str]:
    planned = (*(_SEARCH if rollout.search else ()), *(_PURCHASE if rollout.purchase else ()))
    places = {
        "rule_better": [rows_of(run.after, "rsum", t, files=BOTH_FILES)],
        "rule_held_out": [f"{RECORD_FILE}: seen_products"],
        "rule_parts": [rows_of(run.after, "rsum", t, parts, BOTH_FILES)],
        "rule_left_out": [f"{RECORD_FILE}: rows_used / rows_read", *_own(rollout, "most_left_out")],
        "rule_days": _own(rollout, "test.most_days", *_TEST, *planned),
    }
    return cite.cite(t(each.name, **each.figures), *places[each.name]), each.holds, each.detail
