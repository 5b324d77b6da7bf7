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
"""`fusionmatch learning-curve`: how many labelled pairs an adaptation needs, and what unpaired ones add."""

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..evaluation.intervals import Interval
from ..training.learning_curve import CurvePoint, draw_learning_curve, learning_curve
from ..training.pipeline import METRICS_FILE, write_json
from .adapt import AdaptTrainingArguments
from .arguments import CommandParser, DataArguments, LoraArguments, ModelArguments
from .models import load_base


@dataclass
class CurveArguments:
    """Which points of the curve."""

    labels: list[int] = field(
        default_factory=lambda: [100, 300, 1000],
        metadata={"help": "Training pictures that keep their texts; more than there are stands for all of them."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Each draws other labels and trains with other random numbers."}
    )
    use_unpaired: bool = field(
        default=True, metadata={"help": "Train with the pictures and texts that were taken apart as well."}
    )


@dataclass
class CurveTrainingArguments(AdaptTrainingArguments):
    """Training arguments of each point."""

    output_dir: str | None = field(
        default="fusionmatch-learning-curve", metadata={"help": "Folder for the curve and for each training."}
    )


SETTINGS_FILE = "settings.json"
# What another run in the same folder may have otherwise.
NO_MATTER = {
    "output_dir",
    "logging_dir",
    "run_name",
    "disable_tqdm",
    "feature_cache_dir",
    "image_cache_dir",
    "report_to",
    "report_language",
    "push_to_hub",
}


def run(argv: list[str]) -> None:
    """Trains with few and with more labels, prints and draws what each reaches."""
    parser = CommandParser(
        (ModelArguments, DataArguments, LoraArguments, CurveArguments, CurveTrainingArguments), "learning-curve"
    )
    model_args, data_args, lora_args, curve_args, args = parser.parse(argv)
    lora_args.settle(args)
    output_dir = Path(args.output_dir)
    intake = data_args.read()
    splits = data_args.split(intake)
    if "train" not in splits:
        raise ValueError(f"The split `train` is missing; there are {', '.join(splits)}.")
    loading = lora_args.loading(args)
    _, processor = load_base(model_args)
    pictures = len(splits["train"])
    every = asdict(model_args) | asdict(data_args) | asdict(lora_args) | args.to_dict()
    settings = {name: value for name, value in every.items() if name not in NO_MATTER and not name.startswith("hub_")}
    _check_settings(output_dir, settings, args.process_index == 0)

    def build() -> tuple[nn.Module, Any]:
        model, _ = load_base(model_args, **loading)
        return model, lora_args.prepare(model)

    labels = [min(count, pictures) for count in curve_args.labels]
    points = []
    curve = learning_curve(build, processor, splits, args, labels, curve_args.seeds, curve_args.use_unpaired)
    for point in curve:
        points.append(point)
        if args.process_index == 0:
            _write(output_dir / "learning_curve.csv", points)
            if len(points) == 1:
                print(f"RSUM (of 600) on {len(splits['test']):,} held-out pictures, 95 % intervals over products;")
                # They are labels too.
                print(f"the best epoch is chosen by {len(splits['validation']):,} labelled pictures for validation.")
                print(
                    f"{'labels':>8} {'labels alone':>24} {'with unpaired':>24} {'difference':>24}   pairs found, right"
                )
            print(_line(point), flush=True)
    if args.process_index == 0:
        print(f"Written: {output_dir / 'learning_curve.csv'}")
        try:
            print(f"Drawn in {draw_learning_curve(output_dir / 'learning_curve.png', points)}")
        except ImportError as error:
            # The numbers are what took the time.
            print(f"Not drawn. {error}")


def _check_settings(folder: Path, settings: dict[str, Any], main_process: bool) -> None:
    """What lies in the folder was measured with the same settings, or nothing was measured there."""
    path = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings, default=str))
    if path.is_file() and any(folder.glob(f"*/{METRICS_FILE}")):
        before = json.loads(path.read_text(encoding="utf-8"))
        # An earlier version did not know every setting, and measured without those that it did not know.
        other = [name for name in settings if name in before and settings[name] != before[name]]
        if other:
            raise ValueError(
                f"What lies in {folder} was measured with another "
                + ", ".join(f"`{name}` ({before[name]}, now {settings[name]})" for name in other[:3])
                + ". Name another `--output_dir`."
            )
    elif main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)


def _line(point: CurvePoint) -> str:
    def cell(interval: Interval | None, sign: str = "") -> str:
        return "" if interval is None else f"{interval:{sign}.1f}"

    pairs = "" if point.pseudo_pairs is None else f"{point.pseudo_pairs:.0f}"
    if point.precision is not None:
        pairs += f", {point.precision:.0%}"
    return (
        f"{point.labels or 'base':>8} {cell(point.alone):>24} {cell(point.unpaired):>24} "
        f"{cell(point.difference, '+'):>24}   {pairs}"
    ).rstrip()


def _write(path: Path, points: list[CurvePoint]) -> None:
    names = ("alone", "unpaired", "difference")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
        writer.writerow(["labels", *ends, "alone_by_seed", "unpaired_by_seed", "pseudo_pairs", "precision"])
        for point in points:
            intervals = [getattr(point, name) for name in names]
            cells = [
                "" if each is None else round(getattr(each, end), 2)
                for each in intervals
                for end in ("value", "low", "high")
            ]
            seeds = [
                " ".join(f"{value:.1f}" for value in part) for part in (point.alone_by_seed, point.unpaired_by_seed)
            ]
            writer.writerow([point.labels, *cells, *seeds, point.pseudo_pairs, point.precision])
