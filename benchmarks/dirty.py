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
"""
What faults in a catalogue cost, and what `fusionmatch check --mismatches` gives back: the same adaptation on a sound
catalogue, on a copy with faults in what is trained on, and on that copy without the rows that `check` finds.

    python benchmarks/dirty.py --catalogue products.csv --model_name_or_path base --work_dir runs --preset fast

Further options go to `fusionmatch adapt` as they are. Products are held out as `adapt` does; these stay sound and are
the test of all three. Pictures that cannot be read leave by themselves in all of them. Runs that are in the work
folder already are not repeated.
"""

import argparse
import csv
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from presets import adapt

from fusionmatch.catalogue import Intake, read_catalogue
from fusionmatch.evaluation.mismatches import suspicious_listings, tower_vectors
from fusionmatch.evaluation.queries import QueryResults, compare, recall_intervals
from fusionmatch.loading import load_pretrained
from fusionmatch.training.pipeline import METRICS_FILE, QUERIES_FILE


RATES = {"truncated": 0.02, "missing": 0.02, "copied": 0.05, "re-encoded": 0.05, "swapped": 0.03, "long": 0.01}
SPLITS = ("train", "validation", "test")


def copy_pictures(rows: list[dict[str, str]], intake: Intake, root: Path, data: Path) -> None:
    """Copies what the rows name into the data folder, under the same relative paths."""
    columns = [name for name in (intake.columns.image, intake.columns.additional_images) if name]
    for row in rows:
        for name in columns:
            for cell in filter(None, row[name].split("|")):
                target = data / cell
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.is_file() and (root / cell).is_file():
                    shutil.copyfile(root / cell, target)


def spoil(rows: list[dict[str, str]], intake: Intake, data: Path, rates: dict[str, float], seed: int) -> list[int]:
    """Spoils so many rows in place, each in one way; returns those whose text was swapped."""
    rng = np.random.default_rng(seed)
    image, texts, group = intake.columns.image, intake.columns.texts, intake.columns.group
    places = rng.permutation(len(rows)).tolist()
    kinds = {kind: [places.pop() for _ in range(round(rate * len(rows)))] for kind, rate in rates.items()}
    sound = list(places)
    for kind, chosen in kinds.items():
        for place in chosen:
            row = rows[place]
            cell = f"spoilt/{place}.jpg"
            path = data / cell
            path.parent.mkdir(exist_ok=True)
            original = data / rows[sound[place % len(sound)]][image]
            if kind == "truncated":
                content = (data / row[image]).read_bytes()
                path.write_bytes(content[: len(content) // 2])
            elif kind == "copied":
                shutil.copyfile(original, path)
            elif kind == "re-encoded":
                with Image.open(original) as picture:
                    picture.convert("RGB").resize([round(0.8 * side) for side in picture.size]).save(path, quality=70)
            elif kind == "long":
                row[texts[-1]] += " Wash at thirty degrees and dry on the line." * 60
            if kind in ("truncated", "missing", "copied", "re-encoded"):
                row[image] = cell
    # Each has the text of the one before it, of another product.
    swapped = sorted(kinds["swapped"], key=lambda place: rows[place][group])
    half = len(swapped) // 2
    order = [place for pair in zip(swapped[:half], swapped[half : 2 * half], strict=True) for place in pair]
    given = [{name: rows[place][name] for name in texts} for place in order]
    for place, text in zip(order, given[-1:] + given[:-1], strict=True):
        rows[place].update(text)
    return order


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def prepare(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Writes the tables of the three conditions and says what was spoilt and found."""
    intake = read_catalogue(args.catalogue)
    with args.catalogue.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    copy_pictures(rows, intake, args.catalogue.parent, data)
    home = {row: name for name, split in intake.split().items() for row in split["source_row"]}
    parts = {name: [row for i, row in enumerate(rows, start=1) if home.get(i) == name] for name in SPLITS}
    dirty = [dict(row) for name in SPLITS[:2] for row in parts[name]]
    swapped = spoil(dirty, intake, data, RATES | {"swapped": args.swapped}, args.spoil_seed)
    write(data / "dirty.csv", dirty)
    found = read_catalogue(data / "dirty.csv")
    model, processor = load_pretrained(args.model_name_or_path)
    vectors = tower_vectors(model, processor, found.dataset)
    numbers = list(found.dataset["source_row"])
    flagged = {numbers[each.row] - 1 for each in suspicious_listings(*vectors, list(found.dataset["product"]))}
    # These do not belong together either.
    copied = {place for place, row in enumerate(dirty) if row[intake.columns.image].startswith("spoilt/")}
    count = len(parts["train"])
    tables = {"sound": parts["train"] + parts["validation"], "dirty": dirty}
    for name, table in tables.items():
        write(data / f"{name}-train.csv", table[:count])
        write(data / f"{name}-validation.csv", table[count:])
    for split, span in (("train", range(count)), ("validation", range(count, len(dirty)))):
        write(data / f"cleaned-{split}.csv", [dirty[place] for place in span if place not in flagged])
    write(data / "test.csv", parts["test"])
    return {
        "rows": len(dirty),
        "quarantined": len({(row.source, row.row) for row in found.quarantine}),
        "swapped": len(swapped),
        "flagged": len(flagged),
        "flagged_and_swapped": len(flagged & set(swapped)),
        "flagged_with_a_picture_of_another_row": len(flagged & copied),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogue", type=Path, required=True, help="CSV whose pictures are named by relative paths")
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--swapped", type=float, default=RATES["swapped"], help="share of the rows with another text")
    parser.add_argument("--spoil_seed", type=int, default=0)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    args, options = parser.parse_known_args()
    name = f"{args.catalogue.parent.name}-{args.swapped:g}-{args.spoil_seed}"
    data = args.work_dir / f"data-{name}"
    if not (data / "spoilt.json").is_file():
        data.mkdir(parents=True, exist_ok=True)
        (data / "spoilt.json").write_text(json.dumps(prepare(args, data)) + "\n", encoding="utf-8")
    print((data / "spoilt.json").read_text(encoding="utf-8"))
    runs: dict[str, list[Path]] = {}
    for condition in ("sound", "dirty", "cleaned"):
        for seed in args.seeds:
            folder = args.work_dir / f"{condition}-{name}-{args.preset}-{seed}"
            runs.setdefault(condition, []).append(folder)
            if not (folder / METRICS_FILE).is_file():
                files = {split: data / f"{condition}-{split}.csv" for split in SPLITS[:2]} | {
                    "test": data / "test.csv"
                }
                named = [word for split, path in files.items() for word in (f"--{split}_file", str(path))]
                adapt(folder, args.preset, seed, [*named, "--model_name_or_path", args.model_name_or_path, *options])
    queries = {name: [QueryResults.load(run / QUERIES_FILE) for run in each] for name, each in runs.items()}
    print("| trained on | pictures | RSUM | against the copy with faults | s |\n|---|---:|---|---|---:|")
    for name, found in queries.items():
        metrics = [json.loads((run / METRICS_FILE).read_text(encoding="utf-8")) for run in runs[name]]
        rsum = recall_intervals(found)["rsum"]
        gain = ""
        if name != "dirty":
            change = compare(found, queries["dirty"])["rsum"]
            gain = f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}], p = {change.p_value:.4f}"
        seconds = statistics.median(each["training_seconds"] for each in metrics)
        print(
            f"| {name} | {metrics[0]['pictures']['train']:,} | {rsum.value:.1f} [{rsum.low:.1f}, {rsum.high:.1f}] | "
            f"{gain} | {seconds:.0f} |"
        )


if __name__ == "__main__":
    main()
