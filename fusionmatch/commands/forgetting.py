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
"""`fusionmatch forgetting`: what an adaptation cost in general retrieval, and how much of it to use."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
from torch import nn

from ..catalogue import read_catalogue
from ..evaluation.forgetting import Point, draw_sweep, interpolated, kept, recommend, sweep
from ..evaluation.queries import QueryResults, recall_intervals
from ..evaluation.retrieval import embed_catalogue
from ..hub import write_merged_card
from ..loading import base_state_dict, load_pretrained
from .arguments import CommandParser, DataArguments, ModelArguments
from .models import load_model


@dataclass
class ForgettingArguments:
    """Against what it is measured, and what is written."""

    general_file: list[str] | None = field(
        default=None, metadata={"help": "Catalogue(s) of the general corpus; all their rows are measured. Needed."}
    )
    base: str | None = field(default=None, metadata={"help": "Of a checkpoint: what it was adapted from."})
    scales: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0],
        metadata={"help": "Strengths: 0 is the base, 1 the adaptation as it was trained."},
    )
    keep: float = field(
        default=0.95,
        metadata={
            "help": "Share of the gain that the recommended strength is to keep; less where that forgets too much."
        },
    )
    most_forgotten: float = field(
        default=0.1,
        metadata={"help": "Share of the base's RSUM on the general corpus that the recommended strength may lose."},
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures embedded at a time."})
    output_file: str | None = field(default=None, metadata={"help": "Picture of the curve: png, pdf or svg."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for a checkpoint at the recommended strength, and `forgetting.json`."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})


def run(argv: list[str]) -> None:
    """Measures strengths of an adaptation on the catalogue and on a general corpus, and recommends one."""
    parser = CommandParser((ModelArguments, DataArguments, ForgettingArguments), "forgetting")
    model_args, data_args, args = parser.parse(argv)
    if not args.general_file or model_args.model_name_or_path is None:
        raise ValueError(
            "Name what was adapted (`--model_name_or_path`) and the general corpus to measure it on as well "
            "(`--general_file`): what the model was trained on before."
        )
    if args.output_dir and Path(args.output_dir).exists() and any(Path(args.output_dir).iterdir()):
        raise ValueError(f"The folder {args.output_dir} is not empty. Name another `--output_dir`.")
    if 0 not in args.scales or not 0 < args.keep <= 1 or not 0 <= args.most_forgotten <= 1:
        raise ValueError(
            f"`--scales` must hold 0 (the base), `--keep` lie in (0, 1] and `--most_forgotten` in [0, 1], got "
            f"{args.scales}, {args.keep} and {args.most_forgotten}."
        )
    if args.output_file:
        Path(args.output_file).parent.mkdir(parents=True, exist_ok=True)
    model, processor = load_model(model_args)
    if hasattr(model, "merge_and_unload"):
        base = {name: tensor.clone() for name, tensor in base_state_dict(model).items()}
        model = model.merge_and_unload()
    elif args.base is not None:
        base = load_pretrained(args.base, dtype=model.dtype)[0].state_dict()
    else:
        raise ValueError(
            f"{model_args.model_name_or_path} is a checkpoint: name the one that it was adapted from, `--base`."
        )
    intake = data_args.read()
    splits = data_args.split(intake)
    missing = [name for name in ("validation", "test") if name not in splits]
    if missing:
        raise ValueError(
            f"The splits {missing} are missing: the strength is chosen on `validation` and measured on `test` "
            "(`--validation_size`, `--test_size`)."
        )
    try:
        corpus = read_catalogue({"test": args.general_file})
    except ValueError as error:
        raise ValueError(
            f"The general corpus ({', '.join(args.general_file)}) cannot be read: {error} Its columns are guessed; "
            "rename them to `image`, `caption` and `product`."
        ) from error
    general = corpus.dataset
    print(f"Catalogue: {intake.summary()}\nGeneral corpus: {corpus.summary()}\n", flush=True)

    def measure(dataset: datasets.Dataset, each: nn.Module) -> QueryResults:
        options = {"batch_size": args.batch_size, "disable_tqdm": args.disable_tqdm}
        return QueryResults.from_embeddings(embed_catalogue(each, processor, dataset, **options), dataset)

    # Chosen on one split, measured on another: the best of five is better than it is.
    points = sweep(model, base, lambda m: measure(splits["validation"], m), lambda m: measure(general, m), args.scales)
    chosen = recommend(points, args.keep, args.most_forgotten)
    table = "\n".join([_table(points, chosen), *_caveat(points, chosen, args)])
    print(table)
    if chosen is None and args.output_dir:
        print(f"Nothing is written into {args.output_dir}.")
    scales = sorted({0.0, 1.0} if chosen is None else {0.0, chosen.scale, 1.0})
    runs = {scale: measure(splits["test"], each) for scale, each in interpolated(model, base, scales)}
    tested = {scale: recall_intervals([run])["rsum"].value for scale, run in runs.items()}
    words = f"On the test split ({len(splits['test']):,} pictures): {tested[0.0]:.1f} for the base"
    for scale in scales[1:]:
        gain = recall_intervals([runs[scale]], [runs[0.0]])["rsum"]
        strength = "as it was trained" if scale == 1 else f"at {scale:g}"
        words += f"; {tested[scale]:.1f} {strength}, {gain:+.1f}"
    print(f"{words}.")
    if args.output_dir and chosen is not None:
        for _, each in interpolated(model, base, [chosen.scale]):
            each.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        adapted, origin = model_args.model_name_or_path, args.base or model.config.name_or_path
        results = f"```text\n{table}\n{words}.\n```"
        write_merged_card(args.output_dir, adapted, origin, scale=chosen.scale, results=results)
        content = {
            "points": [asdict(point) for point in points],
            "recommended": chosen.scale,
            "kept": kept(points, chosen),
            "test": tested,
        }
        path = Path(args.output_dir) / "forgetting.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"{args.output_dir} is a checkpoint at the strength {chosen.scale:g}.")
    if args.output_file:
        print(f"Drawn in {draw_sweep(args.output_file, points, chosen)}")


def _caveat(points: Sequence[Point], chosen: Point | None, args: ForgettingArguments) -> list[str]:
    """What has to be said of the recommendation, where it is not what was asked for."""
    too_much = f"loses more than {args.most_forgotten:.0%} of the general RSUM"
    if chosen is None:
        return [
            f"None is recommended: each that gains {too_much}. Allow more (`--most_forgotten`), measure smaller "
            "`--scales`, or train less: LoRA, fewer epochs, a lower rate."
        ]
    if chosen.scale == 0:
        return ["No strength gains anything on the validation split: the base is recommended as it is."]
    share = kept(points, chosen)
    if share >= args.keep:
        return []
    return [
        f"The strength {chosen.scale:g} keeps {share:.0%} of the gain, less than the {args.keep:.0%} asked for: what "
        f"keeps more {too_much}. `--scales` in between may keep more."
    ]


def _table(points: Sequence[Point], chosen: Point | None) -> str:
    lines = [f"{'scale':>6} {'catalogue':>10} {'gain':>24} {'general':>8} {'forgotten':>24}   RSUM; validation split"]
    lines += [
        f"{point.scale:>6g} {point.catalogue:>10.1f} {f'{point.gain:+.1f}':>24} {point.general:>8.1f} "
        f"{f'{point.forgotten:.1f}':>24}{'   recommended' if point is chosen else ''}"
        for point in points
    ]
    return "\n".join(lines)
