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
Pairs/s, peak memory and recall of training, beside sentence-transformers' own trainer on the same model.

    python benchmarks/training_speed.py                                (starter base and sample shop, made on the spot)
    python benchmarks/training_speed.py --base base --catalogue products.csv --epochs 30 --seeds 0 1 2

Same encoders and heads, data, batch, steps and optimizer: sentence-transformers loads the checkpoint itself and
trains it with MultipleNegativesRankingLoss, with frozen towers and with the same LoRA, the latter also in mixed
precision of bfloat16. Time counts from the catalogue to the trained model: what we compute once and keep is in it.
Each row and seed runs in a process of its own. Intervals are over the held-out products, those of differences query by
query.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from typing import Any

import datasets
import torch
from speed import base_and_catalogue, run_row

from fusionmatch.evaluation.intervals import Interval, bootstrap_recalls


ROWS = (
    "FusionMatch, frozen towers",
    "sentence-transformers, frozen towers",
    "FusionMatch, LoRA in both towers",
    "sentence-transformers, LoRA in both towers",
    "FusionMatch, LoRA in both towers, bf16",
    "sentence-transformers, LoRA in both towers, bf16",
)
# What is compared: each of ours with the peer's, and bfloat16 with the full precision.
COMPARISONS = (*zip(ROWS[::2], ROWS[1::2], strict=True), (ROWS[4], ROWS[2]))
BATCH = 32


def train_ours(
    base: str, splits: datasets.DatasetDict, epochs: int, lora: bool, bf16: bool, seed: int, folder: str
) -> tuple[Any, Any]:
    """Our trainer with its defaults, but for the choice of the best epoch, which the peer has not."""
    from fusionmatch import FusionMatchTrainer, FusionMatchTrainingArguments
    from fusionmatch.loading import load_pretrained
    from fusionmatch.training import freeze_towers, lora_config

    model, processor = load_pretrained(base)
    args = FusionMatchTrainingArguments(
        folder,
        per_device_train_batch_size=BATCH,
        num_train_epochs=epochs,
        seed=seed,
        batch_sampler="no_duplicates",  # as `fusionmatch adapt` has it
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),  # transformers asks for it with bf16
        eval_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = FusionMatchTrainer(
        model if lora else freeze_towers(model),
        args,
        train_dataset=splits["train"],
        processing_class=processor,
        peft_config=lora_config(model) if lora else None,
    )
    trainer.train()
    return trainer.model, processor


def train_peer(
    base: str, splits: datasets.DatasetDict, epochs: int, lora: bool, bf16: bool, seed: int, folder: str
) -> tuple[Any, Any]:
    """sentence-transformers' trainer; one text a picture, as its pairs are."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import set_seed

    from fusionmatch.loading import load_pretrained
    from fusionmatch.training import freeze_towers, lora_config

    set_seed(seed)  # as our trainer does before it makes the LoRA weights
    model = SentenceTransformer(base)
    core = model[0].model
    if lora:
        model.add_adapter(lora_config(core))
    else:
        freeze_towers(core)
    rows = splits["train"]
    columns = {"anchor": [texts[0] for texts in rows["texts"]], "positive": list(rows["image"])}
    args = SentenceTransformerTrainingArguments(
        folder,
        per_device_train_batch_size=BATCH,
        num_train_epochs=epochs,
        seed=seed,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),  # transformers asks for it with bf16
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup_steps=0.05,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=True,
    )
    pairs = datasets.Dataset.from_dict(columns).cast_column("positive", datasets.Image())
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, args, train_dataset=pairs, loss=loss).train()
    return core, load_pretrained(base)[1]


def measure(row: str, base: str, catalogue: str, epochs: int, seed: int) -> dict[str, Any]:
    """Seconds, pairs/s, peak memory and ranks on the held-out products of one row and seed."""
    from fusionmatch import load_catalogue
    from fusionmatch.evaluation.retrieval import embed_catalogue

    splits = load_catalogue(catalogue)
    train = train_ours if row.startswith("FusionMatch") else train_peer
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        model, processor = train(base, splits, epochs, "LoRA" in row, "bf16" in row, seed, folder)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pairs = len(splits["train"]) // BATCH * BATCH * epochs
    embeddings = embed_catalogue(model.eval(), processor, splits["test"], disable_tqdm=True)
    return {
        "seconds": seconds,
        "speed": pairs / seconds,
        "peak_gb": peak,
        "ranks": [embeddings.ranks(direction).tolist() for direction in ("i2t", "t2i")],
        "products": [list(embeddings.image_products), list(embeddings.text_products)],
    }


def rsum(runs: list[dict[str, Any]], baseline: list[dict[str, Any]] | None = None) -> Interval:
    """RSUM over the seeds with its interval, or the difference to that of other runs."""
    ranks = [[tuple(map(torch.tensor, run["ranks"])) for run in side] for side in (runs, baseline or [])]
    return bootstrap_recalls(ranks[0], *runs[0]["products"], baseline=ranks[1] or None)["rsum"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="checkpoint; without, the starter base")
    parser.add_argument("--catalogue", help="catalogue; without, the sample shop")
    parser.add_argument("--epochs", type=int, default=30, help="of frozen towers; LoRA gets a fifth of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row, args.base, args.catalogue, args.epochs, args.seeds[0])))
        return
    with base_and_catalogue(args.base, args.catalogue) as (base, catalogue):
        found: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
        epochs = {row: max(1, args.epochs // 5) if "LoRA" in row else args.epochs for row in ROWS}
        # One after the other for each seed, so that what is compared is measured close together.
        for seed in args.seeds:
            for row, runs in found.items():
                options = ("--epochs", str(epochs[row]), "--seeds", str(seed))
                runs.append(run_row(__file__, row, "--base", base, "--catalogue", catalogue, *options))
        print("| what | epochs | seconds | pairs/s | peak GB | RSUM |\n|---|---:|---:|---:|---:|---|")
        for row, runs in found.items():
            seconds, speed = (statistics.median(run[name] for run in runs) for name in ("seconds", "speed"))
            reached, peak = rsum(runs), max(run["peak_gb"] for run in runs)
            print(
                f"| {row} | {epochs[row]} | {seconds:.0f} | {speed:.1f} | {peak:.2f} | {reached.value:.1f} "
                f"[{reached.low:.1f}, {reached.high:.1f}] |"
            )
        for row, other in COMPARISONS:
            ratio = statistics.median(a["speed"] / b["speed"] for a, b in zip(found[row], found[other], strict=True))
            gain = rsum(found[row], found[other])
            print(
                f"\n{row}: {ratio:.1f} times the pairs/s of {other}; RSUM {gain.value:+.1f} "
                f"[{gain.low:+.1f}, {gain.high:+.1f}], {len(args.seeds)} seed(s)."
            )


if __name__ == "__main__":
    main()
