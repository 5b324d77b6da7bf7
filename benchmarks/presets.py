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
What each preset of `fusionmatch adapt` reaches on a catalogue, what it costs, and what it forgets of a general corpus.

    python benchmarks/presets.py --model_name_or_path base --general_file "flickr8k/test-*.parquet" --work_dir runs \\
        --catalogue products.csv

Further options go to `fusionmatch adapt` as they are. Each preset and seed is one call of the command in a process of
its own; runs that are in the work folder already are not repeated, so other options take another folder. Writes
`presets.csv` and `presets.md` there.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import torch

from fusionmatch import load_catalogue
from fusionmatch.evaluation.queries import QueryResults, recall_intervals
from fusionmatch.evaluation.retrieval import embed_catalogue
from fusionmatch.loading import load_pretrained
from fusionmatch.training.adapters import PRESETS
from fusionmatch.training.pipeline import METRICS_FILE, QUERIES_BEFORE_FILE, QUERIES_FILE


# Ranks on the general corpus, beside those of the catalogue.
GENERAL_FILE = "general.parquet"


def adapt(folder: Path, preset: str, seed: int, options: list[str]) -> dict[str, float]:
    """One call of the command; its numbers with the peak of its resident memory."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "fusionmatch", "adapt", "--preset", preset, "--seed", str(seed), *options]
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--output_dir", str(folder), "--disable_tqdm", "True"], stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{preset}, seed {seed} failed; see {log.name}")
    return {"peak_gb": usage.ru_maxrss / 2**20}


def measure_general(name: str | Path, general: datasets.Dataset, path: Path) -> None:
    """Writes the ranks of a checkpoint or adapter on the general corpus."""
    model, processor = load_pretrained(name)
    QueryResults.from_embeddings(embed_catalogue(model, processor, general, disable_tqdm=True), general).save(path)


def line(
    name: str, runs: list[Path], general: QueryResults, before: list[QueryResults], full: float | None
) -> dict[str, Any]:
    """One line of the table from the folders of its seeds."""
    queries = [QueryResults.load(run / QUERIES_FILE) for run in runs] or before
    found = recall_intervals(queries)
    numbers = [json.loads((run / "preset.json").read_text()) for run in runs]
    row: dict[str, Any] = {"preset": name, "seeds": len(runs) or ""}
    for key in ("i2t_recall@10", "t2i_recall@10", "rsum"):
        row |= {key: found[key].value, f"{key}_low": found[key].low, f"{key}_high": found[key].high}
    if runs:
        gain = recall_intervals(queries, before * len(queries))["rsum"]
        row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
        row["of_full"] = None if full is None else gain.value / full
        row["trained"] = numbers[0]["trainable_parameters"] / numbers[0]["parameters"]
        row["minutes"] = statistics.median(each["training_seconds"] for each in numbers) / 60
        row["peak_gb"] = max(each["peak_gb"] for each in numbers)
        lost = recall_intervals([general] * len(runs), [QueryResults.load(run / GENERAL_FILE) for run in runs])["rsum"]
        row |= {"forgotten": lost.value, "forgotten_low": lost.low, "forgotten_high": lost.high}
    return row


def markdown(rows: list[dict[str, Any]], base_general: float) -> str:
    """The table for a document."""
    lines = [
        "| preset | seeds | i→t R@10 | t→i R@10 | RSUM | gain | of full's | trained | min | GB | "
        f"forgotten (of {base_general:.1f}) |",
        "|---|---:|---|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:

        def cell(key: str, sign: str = "", row: dict[str, Any] = row) -> str:
            ends = f"[{row[f'{key}_low']:{sign}.1f}, {row[f'{key}_high']:{sign}.1f}]"
            return f"{row[key]:{sign}.1f} {ends}"

        cells = [row["preset"], str(row["seeds"]), *(cell(key) for key in ("i2t_recall@10", "t2i_recall@10", "rsum"))]
        if "gain" in row:
            share = "" if row["of_full"] is None else f"{row['of_full']:.0%}"
            cells += [cell("gain", "+"), share, f"{row['trained']:.1%}", f"{row['minutes']:.1f}"]
            cells += [f"{row['peak_gb']:.1f}", cell("forgotten")]
        lines.append("| " + " | ".join(cells + [""] * (11 - len(cells))) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="base that was trained on pairs")
    parser.add_argument("--general_file", nargs="+", required=True, help="general corpus; all its rows are measured")
    parser.add_argument("--general_samples", type=int, help="only so many of them")
    parser.add_argument("--work_dir", type=Path, required=True)
    # 4 bits are for accelerators.
    here = [name for name in PRESETS if name != "qlora" or torch.accelerator.is_available()]
    parser.add_argument("--presets", nargs="*", choices=list(PRESETS), default=here)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    args, options = parser.parse_known_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    settings = [args.model_name_or_path, args.general_file, args.general_samples, options]
    note = args.work_dir / "settings.json"
    if note.is_file() and json.loads(note.read_text()) != settings:
        parser.error(f"{args.work_dir} holds runs of other settings: {note.read_text()}. Name another --work_dir.")
    note.write_text(json.dumps(settings))
    general = load_catalogue({"test": args.general_file})["test"]
    if args.general_samples is not None:
        general = general.select(range(args.general_samples))
    path = args.work_dir / GENERAL_FILE
    if not path.is_file():
        measure_general(args.model_name_or_path, general, path)
    kept = QueryResults.load(path)
    options = ["--model_name_or_path", args.model_name_or_path, *options]
    for seed in args.seeds:
        for preset in args.presets:
            folder = args.work_dir / f"{preset}-{seed}"
            if (folder / "preset.json").is_file():
                continue
            numbers = adapt(folder, preset, seed, options)
            numbers |= json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
            measure_general(folder, general, folder / GENERAL_FILE)
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            (folder / "preset.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
            print(f"{preset}, seed {seed}: RSUM {numbers['after']['rsum']:.1f}", flush=True)

    runs = {
        preset: sorted(path.parent for path in args.work_dir.glob(f"{preset}-*/preset.json")) for preset in PRESETS
    }
    runs = {preset: folders for preset, folders in runs.items() if folders}
    before = [QueryResults.load(next(iter(runs.values()))[0] / QUERIES_BEFORE_FILE)]
    full = line("full", runs["full"], kept, before, None)["gain"] if "full" in runs else None
    table = [line("base", [], kept, before, None)]
    table += [line(preset, folders, kept, before, full) for preset, folders in runs.items()]
    with (args.work_dir / "presets.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[-1]))
        writer.writeheader()
        writer.writerows(table)
    text = markdown(table, recall_intervals([kept])["rsum"].value)
    (args.work_dir / "presets.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
