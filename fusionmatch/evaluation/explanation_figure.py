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
"""Draws what [`~fusionmatch.evaluation.explanation.explain`] read."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .explanation import Explanation, SideReading


if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_explanations(
    path: str | Path, examples: Sequence[tuple[str, Image.Image, str, Explanation]], title: str = ""
) -> Path:
    """
    One row an example: the picture, where it was looked at, its levels, heads and concepts; the text's words, levels,
    heads and concepts.

    Args:
        path (`str` or `Path`):
            Picture file to write; its ending says the format.
        examples (`Sequence[tuple]`):
            For each a heading, the picture, the text and the [`Explanation`].
        title (`str`, *optional*):
            Line above all.

    Returns:
        `Path`: the file.

    Raises:
        `ImportError`: matplotlib is not installed; the message has the `pip install` line.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing needs matplotlib: pip install 'fusionmatch[plots]'") from error

    columns = ("picture", "looked at", "picture: levels and heads", "words", "text: levels and heads", "concepts")
    if not any(found.image.concepts for *_, found in examples):
        columns = columns[:-1]
    figure = Figure(figsize=(17, 2.9 * len(examples) + 0.6), layout="constrained")
    figure.suptitle(title)
    all_axes = figure.subplots(
        len(examples), len(columns), squeeze=False, width_ratios=[1.2, 1.2, 1.3, 1.5, 1.3, 1.7][: len(columns)]
    )
    for axes, (heading, image, text, found) in zip(all_axes, examples, strict=True):
        image = image.convert("RGB")
        axes[0].imshow(image)
        axes[0].set_title(heading, fontsize=9, loc="left")
        axes[0].set_xlabel(
            "\n".join(textwrap.wrap(text, 38)[:4])
            + f"\ncosine {found.cosine:.2f}, of the plain paths {found.plain_cosine:.2f}",
            fontsize=7,
            loc="left",
            multialignment="left",
        )
        axes[1].imshow(image.convert("L"), cmap="gray", alpha=0.6)
        axes[1].imshow(_heat(found, image.size), cmap="inferno", alpha=0.55)
        for plain in axes[:2]:
            plain.set_xticks([])
            plain.set_yticks([])
        _side(axes[2], found.image)
        _words(axes[3], found)
        _side(axes[4], found.text)
        if len(columns) > 5:
            _concepts(axes[5], found)
    for axes, name in zip(all_axes[0][1:], columns[1:], strict=True):
        axes.set_title(name, fontsize=9, loc="left")
    for axes in all_axes[:, 2:].flat:
        axes.tick_params(axis="x", labelsize=7)
        if axes.axison:
            axes.locator_params(axis="x", nbins=5)
    path = Path(path)
    figure.savefig(path, dpi=90)
    return path


def _heat(found: Explanation, size: tuple[int, int]) -> np.ndarray:
    """All heads and levels together, (height, width), 1 at most."""
    total = np.zeros((size[1], size[0]), dtype=np.float32)
    for grid in found.image_maps.values():
        places = Image.fromarray(grid.mean(dim=0).float().numpy())
        total += np.asarray(places.resize(size, Image.Resampling.BICUBIC))
    return (total - total.min()) / max(float(total.max() - total.min()), 1e-9)


def _side(axes: "Axes", side: SideReading) -> None:
    """What the cosine loses without each level and each head."""
    names = [f"level {level} ({side.level_shares[level]:.0%})" for level in side.levels]
    names += [f"head {i + 1}" for i in range(len(side.heads))]
    values = [*side.levels.values(), *side.heads]
    colours = ["C0"] * len(side.levels) + ["C1" if value >= 0 else "C3" for value in side.heads]
    axes.barh(range(len(values)), values, color=colours)
    axes.set_yticks(range(len(values)), names, fontsize=7)
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.invert_yaxis()
    # What is below a hundredth of a cosine shall look like it.
    reach = 1.1 * max(0.01, *map(abs, values))
    axes.set_xlim(-reach, reach)
    axes.set_xlabel("cosine lost without it (share in the fusion)", fontsize=7)


def _words(axes: "Axes", found: Explanation) -> None:
    words = found.words[:14]
    axes.barh(range(len(words)), [weight for _, weight in words], color="C2")
    axes.set_yticks(range(len(words)), [word for word, _ in words], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("share of the attention", fontsize=7)


def _concepts(axes: "Axes", found: Explanation) -> None:
    """The concepts of both sides, those of the picture above."""
    rows = [
        (f"{side}: {word} ({own.without_concept.get(word, 0):+.3f})", p, colour)
        for side, own, colour in (("picture", found.image, "C0"), ("text", found.text, "C2"))
        for word, p in own.concepts
    ]
    if not rows:
        axes.axis("off")
        return
    axes.barh(range(len(rows)), [p for _, p, _ in rows], color=[colour for _, _, colour in rows])
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("probability (cosine lost without it)", fontsize=7)
