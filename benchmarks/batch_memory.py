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
Peak memory of a training step against the size of the batch, with and without mini-batches (GradCache).

    python benchmarks/batch_memory.py --batch_sizes 64 256 1024 4096                (starter base, LoRA in both towers)

Pictures are JPEG files of 640 x 480, and each size runs in a process of its own. `--mini_batch_size` is that of the
second column; the first is without and stops at `--largest_whole`.
"""

import argparse
import io
import json
import resource
import tempfile
import time

import numpy as np
from PIL import Image
from speed import base_and_catalogue, run_row


def measure(base: str, batch: int, mini_batch: int | None) -> dict[str, float]:
    """Peak GB before and after one step, and its seconds."""
    import datasets

    from fusionmatch import FusionMatchTrainer, FusionMatchTrainingArguments
    from fusionmatch.loading import load_pretrained
    from fusionmatch.training import lora_config

    model, processor = load_pretrained(base)
    generator = np.random.default_rng(0)
    rows = {
        "image": [{"bytes": photograph(generator), "path": None} for _ in range(batch)],
        "texts": [[f"thing {i} of {batch}"] for i in range(batch)],
        "product": [str(i) for i in range(batch)],
    }
    rows["image_id"] = rows["product"]
    with tempfile.TemporaryDirectory() as folder:
        args = FusionMatchTrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            mini_batch_size=mini_batch,
            max_steps=1,
            eval_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        trainer = FusionMatchTrainer(
            model, args, train_dataset=dataset, processing_class=processor, peft_config=lora_config(model)
        )
        before, start = peak_gb(), time.perf_counter()
        trainer.train()
        return {"before": before, "peak": peak_gb(), "seconds": time.perf_counter() - start}


def photograph(generator: np.random.Generator) -> bytes:
    """A picture as large as a shop's, of few bytes."""
    colours = Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    file = io.BytesIO()
    colours.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def peak_gb() -> float:
    """Largest resident memory so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="checkpoint; without, the starter base")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--mini_batch_size", type=int, default=32)
    parser.add_argument("--largest_whole", type=int, default=256, help="largest batch without mini-batches")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        batch, mini_batch = map(int, args.row.split())
        print(json.dumps(measure(args.base, batch, mini_batch or None)))
        return
    with base_and_catalogue(args.base, "unused") as (base, _):
        print(
            "| batch | mini-batch | before, GB | peak, GB | of it the pictures | s |\n|---:|---:|---:|---:|---:|---:|"
        )
        for batch in args.batch_sizes:
            for mini_batch in (0, args.mini_batch_size):
                if not mini_batch and batch > args.largest_whole:
                    continue
                found = run_row(__file__, f"{batch} {mini_batch}", "--base", base)
                pixels = batch * 3 * 224 * 224 / 2**30
                print(
                    f"| {batch:,} | {mini_batch or 'none'} | {found['before']:.2f} | {found['peak']:.2f} | "
                    f"{pixels:.2f} | {found['seconds']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
