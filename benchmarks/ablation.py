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
What each part of FusionMatch is worth, on one corpus with frozen towers: same cached features, seed, batch and steps
for every row, settings of `recipes/flickr8k/base.yaml` where a row does not say otherwise.

    python benchmarks/ablation.py --base base --train_file "flickr8k/train-*.parquet" \\
        --validation_file "flickr8k/validation-*.parquet" --test_file "flickr8k/test-*.parquet" --work_dir runs

The best epoch is chosen on the validation split; each run is then measured once on the test split and its ranks
stay as one small file in `results` of the work folder. Runs found there are not repeated, so a stopped benchmark goes
on, and further rows and seeds add to the table; `--results_dir benchmarks/results/flickr8k --rows` makes one of the
runs that are kept there, without a training. Writes `ablation.csv`, `ablation.md` and `ablation.png` into the work
folder. `--rows` takes names or groups: `--rows architecture peers`; `--list` shows them.
"""

import argparse
import csv
import dataclasses
import fnmatch
import json
import logging
import shutil
import statistics
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from ablation_rows import CONTROL, ROWS, Row, StepSchedule
from peers import PEERS, train_peer
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoProcessor, set_seed

from fusionmatch import FusionMatchConfig, FusionMatchModel, FusionMatchTrainingArguments, load_catalogue
from fusionmatch.catalogue.concepts import ConceptBank, build_concepts
from fusionmatch.evaluation.intervals import bootstrap_recalls
from fusionmatch.evaluation.retrieval import CatalogueEmbeddings, unique_texts
from fusionmatch.loading import load_pretrained
from fusionmatch.training import lora_config
from fusionmatch.training.concepts import attach_concepts
from fusionmatch.training.pipeline import fit


RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "flickr8k" / "base.yaml"
RECALLS = [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]


class Bench:
    """The corpus, the base and the work folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        self.splits = load_catalogue(files)
        self.base: str = args.base
        self.work_dir: Path = args.work_dir
        self.features = self.work_dir / "features"
        recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
        self.config = json.loads(recipe.pop("config_overrides"))
        self.training = recipe | {"learning_rate": float(recipe["learning_rate"])}

    def arguments(self, run: Path, seed: int, **settings: Any) -> FusionMatchTrainingArguments:
        defaults = self.training | {
            "seed": seed,
            "feature_cache_dir": str(self.features),
            "use_cpu": not torch.accelerator.is_available(),
            "save_total_limit": 1,
        }
        return FusionMatchTrainingArguments(str(run), **(defaults | settings))

    def build(self, seed: int, row: Row, processor: Any) -> FusionMatchModel:
        """The base with a row's settings: towers from the checkpoint, all else freshly initialised with the seed."""
        config = FusionMatchConfig.from_pretrained(self.base, **(self.config | row.config))
        trained = FusionMatchModel.from_pretrained(self.base)
        set_seed(seed)
        model = FusionMatchModel(config)
        model.vision_model.load_state_dict(trained.vision_model.state_dict())
        model.text_model.load_state_dict(trained.text_model.state_dict())
        model.vision_model.requires_grad_(False)
        model.text_model.requires_grad_(False)
        if row.concepts:
            attach_concepts(model, processor, self.bank)
        return model

    @cached_property
    def bank(self) -> ConceptBank:
        """The concepts of the training captions; the rows of all splits get what they name of them."""
        bank = build_concepts(self.splits["train"], 300, language="en", disable_tqdm=True)
        for name, split in self.splits.items():
            self.splits[name] = bank.label(split, disable_tqdm=True)
        return bank

    def run(self, row: Row, seed: int) -> tuple[dict[str, Any], CatalogueEmbeddings]:
        """Trains and measures one row with one seed."""
        run = self.work_dir / slug(row.name, seed)
        shutil.rmtree(run, ignore_errors=True)
        processor = AutoProcessor.from_pretrained(self.base)
        settings, peft_config = dict(row.training), None
        if row.peer:
            return train_peer(PEERS[row.peer], self, processor, seed, **settings)
        if row.on:
            base = self.work_dir / slug(row.on, seed)
            if not base.is_dir():
                self.run(next(each for each in ROWS if each.name == row.on), seed)
            model, _ = load_pretrained(base, ranking_stage=row.ranking)
            if row.ranking:
                model.fusionmatch.requires_grad_(False)
            else:
                peft_config = lora_config(model)
        else:
            model = self.build(seed, row, processor)
        callbacks = [StepSchedule()] if row.step_schedule else None
        result = fit(model, processor, self.splits, self.arguments(run, seed, **settings), peft_config, callbacks)
        core = getattr(model, "fusionmatch", model)
        branches = [branch for branch in (core.vision_fusion, core.text_fusion) if branch is not None]
        gates = [round(branch.residual.gate.tanh().item(), 3) for branch in branches]
        for checkpoint in run.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if not row.keep:
            shutil.rmtree(run)
        numbers = {"trainable": result.trainable[-1][1], "seconds": result.seconds, "gates": gates}
        numbers["validation_rsum"] = result.trainer.state.best_metric
        numbers |= {name: value for name, value in result.after.items() if name.startswith("concepts")}
        return numbers, result.after_embeddings


def slug(name: str, seed: int) -> str:
    """A row and seed as the name of a file."""
    return "".join(c if c.isalnum() else "-" for c in f"{name}-{seed}").lower()


def settings_of(row: Row) -> dict[str, Any]:
    """What a run depends on beside the recipe, as JSON gives it back."""
    shown = ("group", "name", "keep", "one_seed", "against")
    return json.loads(json.dumps({key: value for key, value in vars(row).items() if key not in shown}))


def reset_peak_memory() -> None:
    """Linux: starts the peak of resident memory anew, so that each run has its own."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb() -> float:
    """Linux: peak of resident memory since [`reset_peak_memory`]; mapped pages of cached features count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def summarise(results: Path, rows: Sequence[Row], test: datasets.Dataset) -> list[dict[str, Any]]:
    """One line a row: means over the seeds with intervals, and the difference to the control on the same seeds."""
    products = (list(test["product"]), unique_texts(test)[1])
    measured: dict[str, dict[int, tuple[dict[str, Any], Any]]] = {}
    for path in sorted(results.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["run"])
            ranks = tuple(file.get_tensor(direction).long() for direction in ("i2t", "t2i"))
        row = next((row for row in rows if row.name == numbers["row"]), None)
        if row is not None and numbers["settings"] != settings_of(row):
            raise SystemExit(f"{path} was run with other settings ({numbers['settings']}); delete it to run it again.")
        measured.setdefault(numbers["row"], {})[numbers["seed"]] = numbers, ranks
    table = []
    for row in rows:
        runs = measured.get(row.name)
        if not runs:
            continue
        found = bootstrap_recalls([ranks for _, ranks in runs.values()], *products)
        line: dict[str, Any] = {"group": row.group, "row": row.name, "seeds": len(runs)}
        line |= {name: round(found[name].value, 1) for name in RECALLS}
        rsum = found["rsum"]
        line |= {"rsum": round(rsum.value, 1), "rsum_low": round(rsum.low, 1), "rsum_high": round(rsum.high, 1)}
        totals = [bootstrap_recalls([ranks], *products, num_samples=1)["rsum"].value for _, ranks in runs.values()]
        line["rsum_by_seed"] = " ".join(f"{total:.1f}" for total in totals)
        both = [seed for seed in runs if seed in measured.get(row.against, {})]
        if both and row.name != row.against:
            pair = [[source[seed][1] for seed in both] for source in (runs, measured[row.against])]
            gain = bootstrap_recalls(pair[0], *products, baseline=pair[1])["rsum"]
            line |= {"gain": round(gain.value, 1), "gain_low": round(gain.low, 1), "gain_high": round(gain.high, 1)}
        numbers = [each for each, _ in runs.values()]
        line |= {
            "validation_rsum": round(statistics.mean(n["validation_rsum"] for n in numbers), 1),
            "trainable": numbers[0]["trainable"],
            "seconds": round(statistics.median(n["seconds"] for n in numbers)),
            "peak_gb": round(max(n["peak_gb"] for n in numbers), 1),
            "gates": " ".join(f"{gate:.2f}" for gate in numbers[0]["gates"]),
        }
        line |= {
            name: round(statistics.mean(n[name] for n in numbers), 1) for name in numbers[0] if "concepts" in name
        }
        table.append(line)
    return table


def markdown(table: list[dict[str, Any]]) -> str:
    """The table for a document."""
    lines = [
        "| row | seeds | i→t R@1 / 5 / 10 | t→i R@1 / 5 / 10 | RSUM | difference | on validation | trained | s | GB |",
        "|---|---:|---|---|---|---|---:|---:|---:|---:|",
    ]
    group = None
    for line in table:
        if line["group"] != group:
            group = line["group"]
            lines.append(f"| *{group}* | | | | | | | | | |")
        recalls = [f"{line[name]:.1f}" for name in RECALLS]
        gain = f"{line['gain']:+.1f} [{line['gain_low']:+.1f}, {line['gain_high']:+.1f}]" if "gain" in line else ""
        lines.append(
            f"| {line['row']} | {line['seeds']} | {' / '.join(recalls[:3])} | {' / '.join(recalls[3:])} | "
            f"**{line['rsum']:.1f}** [{line['rsum_low']:.1f}, {line['rsum_high']:.1f}] | {gain} | "
            f"{line['validation_rsum']:.1f} | {line['trainable'] / 1e6:.2f} M | {line['seconds']} | "
            f"{line['peak_gb']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def plot(table: list[dict[str, Any]], path: Path) -> None:
    """RSUM of every row with its interval; the control as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(line["group"] for line in table))
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.27 * len(table)), layout="constrained")
    for i, line in enumerate(table):
        ends = [[line["rsum"] - line["rsum_low"]], [line["rsum_high"] - line["rsum"]]]
        axes.errorbar(line["rsum"], i, xerr=ends, fmt="o", capsize=3, color=f"C{groups.index(line['group']) % 10}")
        if line["row"] == CONTROL:
            axes.axvline(line["rsum"], color="0.6", linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(table)), [line["row"] for line in table])
    for label, line in zip(axes.get_yticklabels(), table, strict=True):
        label.set_color(f"C{groups.index(line['group']) % 10}")
    axes.set_ylim(len(table) - 0.3, -0.7)
    axes.set_xlabel("RSUM on the test split (of 600), 95 % bootstrap interval over pictures")
    axes.grid(axis="x", color="0.9")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required="--list" not in sys.argv, help="starter base (fusionmatch starter OUT)")
    for split in ("train", "validation", "test"):
        parser.add_argument(f"--{split}_file", required="--list" not in sys.argv)
    parser.add_argument("--work_dir", type=Path, required="--list" not in sys.argv)
    parser.add_argument("--results_dir", type=Path, help="ranks, one file a run (default: WORK_DIR/results)")
    parser.add_argument("--rows", nargs="*", default=["*"], help="names, groups or patterns")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--list", action="store_true", help="show the rows and stop")
    names = [row.name for row in ROWS]
    parser.add_argument("--against", choices=names, metavar="ROW", help="take the differences to it; writes no files")
    args = parser.parse_args()
    chosen = [row for row in ROWS if any(fnmatch.fnmatch(n, p) for p in args.rows for n in (row.group, row.name))]
    if args.list:
        print("\n".join(f"{row.group:<30} {row.name}" for row in chosen))
        return
    logging.basicConfig(level=logging.WARNING)
    bench = Bench(args)
    results: Path = args.results_dir or args.work_dir / "results"
    results.mkdir(parents=True, exist_ok=True)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for row in chosen:
            path = results / f"{slug(row.name, seed)}.safetensors"
            if path.is_file() or (row.one_seed and seed != args.seeds[0]):
                continue
            reset_peak_memory()
            numbers, embeddings = bench.run(row, seed)
            numbers |= {"row": row.name, "seed": seed, "settings": settings_of(row), "peak_gb": peak_memory_gb()}
            ranks = {direction: embeddings.ranks(direction).short() for direction in ("i2t", "t2i")}
            save_file(ranks, path.with_suffix(".partial"), metadata={"run": json.dumps(numbers)})
            path.with_suffix(".partial").rename(path)
            rsum = summarise(results, [row], bench.splits["test"])[0]["rsum_by_seed"]
            print(f"{row.name}, seed {seed}: {numbers['seconds']:.0f} s, RSUM by seed {rsum}", flush=True)

    if args.against is not None:
        others = [dataclasses.replace(row, against=args.against) for row in chosen]
        print(markdown(summarise(results, others, bench.splits["test"])))
        return
    table = summarise(results, ROWS, bench.splits["test"])
    with (args.work_dir / "ablation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for line in table for key in line)))
        writer.writeheader()
        writer.writerows(table)
    (args.work_dir / "ablation.md").write_text(markdown(table), encoding="utf-8")
    plot(table, args.work_dir / "ablation.png")
    print(markdown(table))


if __name__ == "__main__":
    main()
