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
"""`fusionmatch calibrate`: similarities into probabilities, and the threshold below which nothing is carried."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.calibration import (
    Calibration,
    Calibrations,
    HeldOut,
    PairCalibration,
    calibration_error,
    first_hits,
    held_out_pairs,
    precision_and_coverage,
    save_calibration,
)
from ..evaluation.retrieval import embed_catalogue, unique_texts
from .arguments import CommandParser, DataArguments, ModelArguments
from .models import load_model


@dataclass
class CalibrateArguments:
    """What is assumed, and where it is written."""

    carried: float = field(
        default=0.5, metadata={"help": "Share of the searches that look for something the catalogue has, in (0, 1]."}
    )
    matched: float = field(
        default=0.5, metadata={"help": "Share of the pairs that belong together, where pairs are judged, in (0, 1)."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for `calibration.json`; defaults to the model's own."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures embedded at a time."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})

    def __post_init__(self) -> None:
        if not 0 < self.carried <= 1:
            raise ValueError(f"`--carried` must be a share in (0, 1], got {self.carried}.")
        if not 0 < self.matched < 1:
            raise ValueError(f"`--matched` must be a share in (0, 1), got {self.matched}.")


def run(argv: list[str]) -> None:
    """Fits on the validation products, measures on the test products, among all pictures of the catalogue."""
    parser = CommandParser((ModelArguments, DataArguments, CalibrateArguments), "calibrate")
    model_args, data_args, args = parser.parse(argv)
    folder = Path(args.output_dir or model_args.model_name_or_path or "")
    if args.output_dir is None and (model_args.model_name_or_path is None or not folder.is_dir()):
        raise ValueError(
            "Name the folder of what is calibrated (`--model_name_or_path`), or, for a model on the Hub, a folder for "
            "the calibration (`--output_dir`)."
        )
    intake = data_args.read()
    splits = data_args.split(intake)
    missing = [name for name in ("validation", "test") if name not in splits]
    if missing:
        raise ValueError(f"The splits {missing} are missing: it is fitted on `validation` and measured on `test`.")
    model, processor = load_model(model_args)
    # The candidates of a ranking stage would cost much, and its order has nothing to do with the similarity.
    found = embed_catalogue(
        model, processor, intake.dataset, args.batch_size, disable_tqdm=args.disable_tqdm, ranking_top_k=0
    )
    sides = {
        "t2i": (found.text_embeds, found.text_products, found.image_embeds, found.image_products),
        "i2t": (found.image_embeds, found.image_products, found.text_embeds, found.text_products),
    }
    # By row and text, not by product: splits of the user's own may share products.
    seen = set(zip(*unique_texts(splits["train"]), strict=True)) if "train" in splits else set()
    chosen = {}
    for name in ("validation", "test"):
        ids, pairs = set(splits[name]["image_id"]), set(zip(*unique_texts(splits[name]), strict=True)) - seen
        texts = enumerate(zip(found.texts, found.text_products, strict=True))
        chosen[name] = {
            "t2i": [row for row, pair in texts if pair in pairs],
            "i2t": [row for row, image_id in enumerate(intake.dataset["image_id"]) if image_id in ids],
        }
    calibrations = Calibrations()
    for direction, (queries, products, gallery, offered) in sides.items():
        hits = {}
        for name in ("validation", "test"):
            rows = chosen[name][direction]
            hits[name] = first_hits(queries[rows], [products[row] for row in rows], gallery, offered)
        each = calibrations[direction] = Calibration.fit(hits["validation"], args.carried)
        asked, among = ("texts", "pictures") if direction == "t2i" else ("pictures", "texts")
        print(
            f"\n{asked.capitalize()} as queries, among {len(gallery):,} {among}: fitted on {each.queries:,} {asked} "
            f"of validation products, measured on {len(hits['test'].own):,} of test products.\n"
            f"{args.carried:.0%} of the searches are taken to look for something that is carried."
        )
        show(each, hits["test"], "hit", "carried, answered")
    held_out = {}
    for name, rows in chosen.items():
        held_out[name] = held_out_pairs(
            found.image_embeds[rows["i2t"]],
            [found.image_products[row] for row in rows["i2t"]],
            found.text_embeds[rows["t2i"]],
            [found.text_products[row] for row in rows["t2i"]],
            [found.texts[row] for row in rows["t2i"]],
        )
    of_pairs = calibrations["pairs"] = PairCalibration.fit(held_out["validation"], args.matched)
    print(
        f"\nPairs: fitted on {of_pairs.pictures:,} pictures of validation products, each with its own texts "
        "and up to 200 of others.\n"
        f"{args.matched:.0%} of the pairs are taken to belong together."
    )
    show(of_pairs, held_out["test"], "pair", "right ones, above")
    path = save_calibration(folder, calibrations, model)
    where = "" if args.output_dir is None else f" with `--calibration_dir {args.output_dir}`"
    print(
        f"\nWritten: {path}. `fusionmatch search`{where} shows probabilities of what is found for a text, "
        f"`fusionmatch listings`{where} those of pairs."
    )


def show(calibration: Calibration | PairCalibration, held_out: HeldOut, what: str, covered: str) -> None:
    """Prints what a calibration is worth on the test products."""
    print(
        f"Calibration error {calibration_error(calibration, held_out):.3f}\n"
        f"{'wanted precision':>17} {'from':>10} {'precision':>10} {covered:>19}"
    )
    for wanted, threshold in calibration.thresholds.items():
        precision, coverage = precision_and_coverage(calibration, held_out, float(wanted))
        if threshold is None:
            print(f"{float(wanted):>17.0%} {'none':>10}   no {what} is sure enough")
        else:
            shown = f"no {what}s" if math.isnan(precision) else f"{precision:.1%}"
            print(f"{float(wanted):>17.0%} {threshold:>10.1%} {shown:>10} {coverage:>19.1%}")
