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
"""What an adaptation cost in general retrieval, and how much of it to use."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .intervals import Interval
from .queries import QueryResults, recall_intervals


@dataclass
class Point:
    """
    One strength of an adaptation.

    Args:
        scale (`float`):
            Share of the way from the base (0) to the adapted model (1).
        catalogue, general (`float`):
            RSUM on the catalogue and on the general corpus, in percent (of 600).
        gain, forgotten ([`~fusionmatch.evaluation.intervals.Interval`], *optional*):
            What that is above the base on the catalogue, and below it on the general corpus, query by query; `None`
            where the base was not measured.
    """

    scale: float
    catalogue: float
    general: float
    gain: Interval | None = None
    forgotten: Interval | None = None


def interpolated(
    model: nn.Module, base: Mapping[str, torch.Tensor], scales: Sequence[float]
) -> Iterator[tuple[float, nn.Module]]:
    r"""
    A model at several strengths of its adaptation, $W_0 + \alpha (W - W_0)$ (WiSE-FT, arXiv 2109.01903). For a merged
    LoRA that is the scale of the adapter; modules that it carried whole go along.

    Args:
        model (`nn.Module`):
            The adapted model, adapters merged; its weights are changed in place, and are its own again at the end.
        base (`Mapping[str, torch.Tensor]`):
            Weights of its base under the same names.
        scales (`Sequence[float]`):
            Strengths; beyond 1 it goes on the same way.

    Raises:
        `ValueError`: the weights of the base are not those of such a model.
    """
    adapted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    odd = [name for name, tensor in adapted.items() if name not in base or base[name].shape != tensor.shape]
    if odd or len(base) != len(adapted):
        raise ValueError(
            f"The base has other weights than the adapted model ({', '.join(odd[:3]) or 'further ones'}). Name the "
            "base that it was adapted from, with `--base`."
        )
    base = {name: tensor.to(adapted[name].device) for name, tensor in base.items()}
    try:
        for scale in scales:
            model.load_state_dict(
                {
                    name: torch.lerp(base[name], tensor, scale) if tensor.is_floating_point() else tensor
                    for name, tensor in adapted.items()
                }
            )
            yield scale, model
    finally:
        model.load_state_dict(adapted)


def sweep(
    model: nn.Module,
    base: Mapping[str, torch.Tensor],
    measure_catalogue: Callable[[nn.Module], QueryResults],
    measure_general: Callable[[nn.Module], QueryResults],
    scales: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
) -> list[Point]:
    """Measures a model at several strengths of its adaptation; the arguments are those of [`interpolated`]."""
    measured = [
        (scale, measure_catalogue(each), measure_general(each)) for scale, each in interpolated(model, base, scales)
    ]
    start = next(((catalogue, general) for scale, catalogue, general in measured if scale == 0), None)

    def rsum(run: QueryResults) -> float:
        return recall_intervals([run], num_samples=1)["rsum"].value

    def above(run: QueryResults, other: QueryResults) -> Interval:
        return recall_intervals([run], [other])["rsum"]

    return [
        Point(
            scale,
            rsum(catalogue),
            rsum(general),
            None if start is None else above(catalogue, start[0]),
            None if start is None else above(start[1], general),
        )
        for scale, catalogue, general in measured
    ]


def recommend(points: Sequence[Point], keep: float = 0.95, most_forgotten: float = 1.0) -> Point | None:
    """
    Of the strengths that keep enough of the gain, the one that forgets least. Where each of those forgets too much,
    the one that gains most of the others; none where that gains nothing.

    Args:
        points (`Sequence[Point]`):
            Measured strengths, 0 among them.
        keep (`float`, *optional*, defaults to 0.95):
            Share of the largest gain on the catalogue that is to be left.
        most_forgotten (`float`, *optional*, defaults to 1.0):
            Share of what the base reaches on the general corpus that may be lost.

    Raises:
        `ValueError`: the strength 0 was not measured, or one of the two is no share.
    """
    start = next((point for point in points if point.scale == 0), None)
    if start is None or not 0 < keep <= 1 or not 0 <= most_forgotten <= 1:
        raise ValueError(
            f"A recommendation needs the scale 0, `keep` in (0, 1] and `most_forgotten` in [0, 1], got "
            f"{[point.scale for point in points]}, {keep} and {most_forgotten}."
        )
    if all(point.catalogue <= start.catalogue for point in points):
        return start
    allowed = [point for point in points if point.general >= (1 - most_forgotten) * start.general]
    enough = [point for point in allowed if kept(points, point) >= keep]
    if enough:
        return max(enough, key=lambda point: (point.general, -point.scale))
    chosen = max(allowed, key=lambda point: (point.catalogue, point.general, -point.scale))
    return chosen if chosen.catalogue > start.catalogue else None


def kept(points: Sequence[Point], point: Point) -> float:
    """What a strength gains on the catalogue, as a share of the largest gain of a sweep that has the strength 0."""
    start = next(each.catalogue for each in points if each.scale == 0)
    best = max(each.catalogue for each in points)
    return (point.catalogue - start) / (best - start) if best > start else 0.0


def draw_sweep(path: str | Path, points: Sequence[Point], chosen: Point | None) -> Path:
    """
    The curve: general retrieval against retrieval on the catalogue, the strengths as marks, with the intervals of what
    is gained and forgotten.

    Raises:
        `ImportError`: matplotlib is not installed; the message has the `pip install` line.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'Drawing needs matplotlib. Install it with: pip install "fusionmatch[plots]", or name no `--output_file`.'
        ) from error
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([point.general for point in points], [point.catalogue for point in points], "o-", color="C0")
    for point in points:
        for name, change, turned in (("yerr", point.gain, False), ("xerr", point.forgotten, True)):
            if change is not None:
                ends = [[change.value - change.low], [change.high - change.value]]
                bar = {name: ends[::-1] if turned else ends}
                axes.errorbar(point.general, point.catalogue, **bar, color="C0", alpha=0.35, linewidth=1)
        axes.annotate(f"{point.scale:g}", (point.general, point.catalogue), (6, 4), textcoords="offset points")
    if chosen is not None:
        ring = {"markersize": 13, "fillstyle": "none", "color": "C3"}
        axes.plot(chosen.general, chosen.catalogue, "o", label="recommended", **ring)
        axes.legend()
    axes.set_xlabel("general corpus, RSUM")
    axes.set_ylabel("catalogue, RSUM")
    axes.set_title("Strength of the adaptation: 0 the base, 1 as it was trained", fontsize=10)
    axes.grid(color="0.9")
    figure.savefig(path, dpi=130)
    return Path(path)
