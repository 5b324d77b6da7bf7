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
"""The plots of a report, as SVG inside the page: the browser sets their letters, in whatever script they are."""

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..evaluation.intervals import Interval
from ..evaluation.queries import QueryResults


_BEFORE, _AFTER, _CHANCE = "#9aa5b1", "#2f5fa8", "#c7ced6"
_FURTHEST = 50


def have_matplotlib() -> bool:
    """Whether plots can be drawn; a report without them is whole."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def _draw(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    # Letters as letters: they stay readable when printed, and no font need hold Japanese here.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "fusionmatch", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    # What surrounds the element, and its namespaces, are for a file of its own.
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])


def recalls_plot(
    names: Sequence[str],
    before: Sequence[Interval],
    after: Sequence[Interval],
    chance: Sequence[float | None],
    labels: tuple[str, str, str],
) -> str:
    """
    Recalls before and after with their intervals, one line each.

    Args:
        names (`Sequence[str]`): What stands at the lines.
        before, after (`Sequence[Interval]`): In percent.
        chance (`Sequence[float]`): In percent; a small mark.
        labels (`tuple[str, str, str]`): Names of before, after and chance.

    Returns:
        `str`: an SVG element.
    """
    figure, axes = _draw(7.6, 0.45 * len(names) + 0.7)
    figure.subplots_adjust(left=0.22, right=0.98, top=0.88, bottom=0.12)
    rows = np.arange(len(names))
    for intervals, colour, label, shift in ((before, _BEFORE, labels[0], 0.13), (after, _AFTER, labels[1], -0.13)):
        values = np.array([each.value for each in intervals])
        # A bootstrap interval may leave its own value out by a rounding.
        ends = np.maximum([values - [each.low for each in intervals], [each.high for each in intervals] - values], 0)
        axes.errorbar(
            values,
            rows + shift,
            xerr=ends,
            fmt="o",
            color=colour,
            label=label,
            capsize=0,
            elinewidth=3,
            markersize=7,
            clip_on=False,
        )
    axes.plot([np.nan if each is None else each for each in chance], rows, "|", color="#5d6875", label=labels[2])
    axes.set(xlim=(0, 100), yticks=rows, yticklabels=names)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e6eaee")
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderpad=0, columnspacing=3)
    return _svg(figure)


def depth_plot(before: QueryResults, after: QueryResults, direction: str, labels: tuple[str, str]) -> str:
    """
    Share of the queries that find their product among the first k, for k up to 50.

    Returns:
        `str`: an SVG element.
    """
    figure, axes = _draw(3.7, 2.6)
    figure.subplots_adjust(left=0.13, right=0.97, top=0.95, bottom=0.18)
    most = min(_FURTHEST, after.num_products)
    steps = np.arange(1, most + 1)
    for run, colour, label in ((before, _BEFORE, labels[0]), (after, _AFTER, labels[1])):
        ranks = np.array(run.side(direction, "rank"))
        ranks = ranks[ranks > 0]
        axes.plot(steps, [100 * (ranks <= k).mean() for k in steps], color=colour, label=label, linewidth=2.5)
    axes.set(xlim=(1, most), ylim=(0, 100), xlabel="k")
    axes.grid(color="#e6eaee")
    axes.legend(loc="lower right", frameon=False)
    return _svg(figure)
