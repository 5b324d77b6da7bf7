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
    python benchmarks/training_speed.py --base base --catalogue products.csv --epochs 30

Same encoders and heads, data, batch, steps and optimizer: sentence-transformers loads the checkpoint itself and
trains it with MultipleNegativesRankingLoss, once with frozen towers and once with the same LoRA. Time counts from the
catalogue to the trained model: what we compute once and keep is in it. Each row runs in a process of its own.
"""

import argparse
import json
import resource
import tempfile
import time
from typing import Any

import datasets
from speed import base_and_catalogue, run_row


ROWS = (
    "FusionMatch, frozen towers",
    "sentence-transformers, frozen towers",
    "FusionMatch, LoRA in both towers",
    "sentence-transformers, LoRA in both towers",
)
BATCH = 32


def train_ours(base: str, splits: datasets.DatasetDict, epochs: int, lora: bool, folder: str) -> tuple[Any, Any]:
    """Our trainer with its defaults, but for the choice of the best epoch, which the peer has not."""
    from fusionmatch import FusionMatchTrainer, FusionMatchTrainingArguments
    from fusionmatch.loading import load_pretrained
    from fusionmatch.training import freeze_towers, lora_config

    model, processor = load_pretrained(base)
    args = FusionMatchTrainingArguments(
        folder,
        per_device_train_batch_size=BATCH,
        num_train_epochs=epochs,
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


def train_peer(base: str, splits: datasets.DatasetDict, epochs: int, lora: bool, folder: str) -> tuple[Any, Any]:
    """sentence-transformers' trainer; one text a picture, as its pairs are."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from fusionmatch.loading import load_pretrained
    from fusionmatch.training import freeze_towers, lora_config

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


def measure(row: str, base: str, catalogue: str, epochs: int) -> dict[str, float]:
    """Seconds, pairs/s, peak memory and RSUM on the held-out products of one row."""
    from fusionmatch import load_catalogue
    from fusionmatch.evaluation import evaluate_retrieval

    splits = load_catalogue(catalogue)
    train = train_ours if row.startswith("FusionMatch") else train_peer
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        model, processor = train(base, splits, epochs, "LoRA" in row, folder)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pairs = len(splits["train"]) // BATCH * BATCH * epochs
    metrics = evaluate_retrieval(model.eval(), processor, splits["test"], disable_tqdm=True)
    return {"seconds": seconds, "speed": pairs / seconds, "peak_gb": peak, "rsum": metrics["rsum"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="checkpoint; without, the starter base")
    parser.add_argument("--catalogue", help="catalogue; without, the sample shop")
    parser.add_argument("--epochs", type=int, default=30, help="of frozen towers; LoRA gets a fifth of them")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row, args.base, args.catalogue, args.epochs)))
        return
    with base_and_catalogue(args.base, args.catalogue) as (base, catalogue):
        print("| what | epochs | seconds | pairs/s | peak GB | RSUM |\n|---|---:|---:|---:|---:|---:|", flush=True)
        found = {}
        for row in ROWS:
            epochs = max(1, args.epochs // 5) if "LoRA" in row else args.epochs
            options = ("--base", base, "--catalogue", catalogue, "--epochs", str(epochs))
            found[row] = run_row(__file__, row, *options)
            print(
                f"| {row} | {epochs} | {found[row]['seconds']:.0f} | {found[row]['speed']:.1f} | "
                f"{found[row]['peak_gb']:.2f} | {found[row]['rsum']:.1f} |",
                flush=True,
            )
        for ours, peer in zip(ROWS[::2], ROWS[1::2], strict=True):
            kind = ours.split(", ")[1]
            print(f"\n{kind}: {found[ours]['speed'] / found[peer]['speed']:.1f} times the peer's pairs/s.")


if __name__ == "__main__":
    main()
