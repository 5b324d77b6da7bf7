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
"""How many labelled pairs an adaptation needs: the same training with few and with more of them."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..catalogue import hide_pairs
from ..evaluation.intervals import Interval
from ..evaluation.queries import QueryResults, recall_intervals
from .arguments import FusionMatchTrainingArguments
from .pipeline import METRICS_FILE, QUERIES_BEFORE_FILE, QUERIES_FILE, check_run, fit, run_key


@dataclass
class CurvePoint:
    """
    What so many labels reach on the test split. RSUM in percent (of 600), with bootstrap intervals over the products.

    Args:
        labels (`int`):
            Training pictures that kept their texts; 0 for the base.
        alone ([`~fusionmatch.evaluation.intervals.Interval`]):
            RSUM of the training with the labels alone, mean over the seeds.
        unpaired, difference ([`~fusionmatch.evaluation.intervals.Interval`], *optional*):
            RSUM with the unpaired pictures and texts as well, and what that adds, query by query.
        alone_by_seed, unpaired_by_seed (`list[float]`):
            RSUM of each seed.
        pseudo_pairs (`float`, *optional*):
            Pairs found among the unpaired ones at the end, mean over the seeds.
        precision (`float`, *optional*):
            Share of them that belong together, in [0, 1].
    """

    labels: int
    alone: Interval
    unpaired: Interval | None = None
    difference: Interval | None = None
    alone_by_seed: list[float] = field(default_factory=list)
    unpaired_by_seed: list[float] = field(default_factory=list)
    pseudo_pairs: float | None = None
    precision: float | None = None


def learning_curve(
    build: Callable[[], tuple[nn.Module, Any]],
    processor: Any,
    splits: datasets.DatasetDict,
    args: FusionMatchTrainingArguments,
    labels: Sequence[int],
    seeds: Sequence[int] = (0,),
    use_unpaired: bool = True,
) -> Iterator[CurvePoint]:
    """
    Trains with few and with more labels, from the same base, for the same number of steps, and measures each on the
    same test split. What has been measured lies in `args.output_dir` and is not trained again.

    Args:
        build (`Callable`):
            Gives a fresh base, and the adapter to train (`None` for its own weights).
        processor ([`FusionMatchProcessor`]):
            Its processor.
        splits (`datasets.DatasetDict`):
            As for [`fit`]; what is left out of `train` counts as unpaired.
        args ([`FusionMatchTrainingArguments`]):
            Arguments of every training; each has a folder of its own in `output_dir`.
        labels (`Sequence[int]`):
            Training pictures that keep their texts. Smaller sets are parts of larger ones.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`):
            Each draws other labels and trains with other random numbers.
        use_unpaired (`bool`, *optional*, defaults to `True`):
            Whether to train with the unpaired pictures and texts as well ([`~fusionmatch.training.unpaired`]).

    Yields:
        [`CurvePoint`]: the base first, then one for each number of labels, as soon as it is measured.

    Raises:
        `ValueError`: a number of labels that the training split does not hold, or `output_dir` has a training of
            another base or catalogue.
    """
    wrong = [count for count in labels if not 2 <= count <= len(splits["train"])]
    if wrong or not labels or not seeds:
        raise ValueError(
            f"`labels` must lie between 2 and the {len(splits['train']):,} training pictures, got {list(labels)}, "
            f"and there must be a seed, got {list(seeds)}."
        )
    args = copy.copy(args)
    args.feature_cache_dir = args.feature_cache_dir or str(Path(args.output_dir) / "feature_cache")

    def run(count: int, seed: int, start: float) -> tuple[Path, dict[str, Any]]:
        """Trains once, or finds what was measured: its folder and metrics."""
        each = copy.copy(args)
        name = f"{count}-{'labels' if start >= 1 else 'unpaired'}-seed-{seed}"
        each.output_dir = str(Path(args.output_dir) / name)
        each.seed, each.pseudo_pair_start = seed, start
        folder = Path(each.output_dir)
        parts, texts = splits, None
        if count < len(splits["train"]):
            train, texts = hide_pairs(splits["train"], count, seed)
            parts = datasets.DatasetDict(splits | {"train": train})
        model, adapter = build()
        if (folder / METRICS_FILE).is_file():
            # Files of the same name may hold something else by now.
            check_run(folder, run_key(model, parts, each, adapter, texts))
        else:
            fit(model, processor, parts, each, adapter, unpaired_texts=texts)
            # The other processes read what the first one writes.
            PartialState().wait_for_everyone()
            if args.should_save:
                for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                    shutil.rmtree(checkpoint)
        return folder, json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))

    def rsum(*runs: list[QueryResults], **kwargs: Any) -> Interval:
        return recall_intervals(*runs, **kwargs)["rsum"]

    def by_seed(runs: list[QueryResults]) -> list[float]:
        return [rsum([each], num_samples=1).value for each in runs]

    for i, count in enumerate(sorted(set(labels))):
        folders = [run(count, seed, 1.0)[0] for seed in seeds]
        if i == 0:
            yield CurvePoint(0, rsum([QueryResults.load(folders[0] / QUERIES_BEFORE_FILE)]))
        alone = [QueryResults.load(folder / QUERIES_FILE) for folder in folders]
        point = CurvePoint(count, rsum(alone), alone_by_seed=by_seed(alone))
        if use_unpaired and count < len(splits["train"]):
            folders, metrics = zip(*(run(count, seed, args.pseudo_pair_start) for seed in seeds), strict=True)
            both = [QueryResults.load(folder / QUERIES_FILE) for folder in folders]
            point.unpaired, point.difference, point.unpaired_by_seed = rsum(both), rsum(both, alone), by_seed(both)
            pairs = [each["pseudo_pairs"] for each in metrics]
            point.pseudo_pairs = sum(pairs) / len(pairs)
            right = sum(n * (each["pseudo_pair_precision"] or 0) for n, each in zip(pairs, metrics, strict=True))
            point.precision = right / sum(pairs) if sum(pairs) else None
        yield point


def draw_learning_curve(path: str | Path, points: Sequence[CurvePoint]) -> Path:
    """
    RSUM against the number of labels, with intervals; the base as a line.

    Raises:
        `ImportError`: matplotlib is not installed; the message has the `pip install` line.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter
    except ImportError as error:
        raise ImportError('Drawing needs matplotlib. Install it with: pip install "fusionmatch[plots]".') from error
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(points[0].alone.value, color="0.5", linestyle="--", linewidth=1, label="base, no labels")
    for color, name in (("C0", "alone"), ("C1", "unpaired")):
        measured = [(point.labels, getattr(point, name)) for point in points[1:]]
        measured = [(count, value) for count, value in measured if value is not None]
        if not measured:
            continue
        counts, values = zip(*measured, strict=True)
        ends = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
        label = "labelled pairs alone" if name == "alone" else "and unpaired pictures and texts"
        # A little apart, so that both intervals can be read.
        shifted = [count * (1.03 if name == "unpaired" else 1) for count in counts]
        axes.errorbar(shifted, [v.value for v in values], yerr=ends, fmt="o-", capsize=3, color=color, label=label)
    axes.set_xscale("log")
    axes.set_xticks([point.labels for point in points[1:]])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("labelled training pictures")
    axes.set_ylabel("RSUM on held-out products (of 600)")
    axes.set_title("95 % bootstrap intervals over products", fontsize=10)
    axes.grid(color="0.9")
    axes.legend()
    figure.savefig(path, dpi=130)
    return Path(path)
