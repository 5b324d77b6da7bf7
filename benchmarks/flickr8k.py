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
FusionMatch on frozen starter towers beside the bare control, which is the plain path alone (pooled features, one small
MLP head each): on the same cached features, with the same seed, batch and steps.

    python benchmarks/flickr8k.py --base base --train_file "flickr8k/train-*.parquet" \\
        --validation_file "flickr8k/validation-*.parquet" --test_file "flickr8k/test-*.parquet" --work_dir runs

The best epoch is chosen on the validation split; each row is then measured once on the test split. Rows that are
already in the work folder are not trained again.
"""

import argparse
import json
import logging
import resource
from pathlib import Path

from transformers import AutoProcessor, set_seed

from fusionmatch import FusionMatchModel, FusionMatchTrainingArguments, load_catalogue
from fusionmatch.modeling_fusionmatch import FusionMatchConfig
from fusionmatch.training.pipeline import fit


# Head and dropouts (against over-fitting on 6,000 pictures), the same for every row.
COMMON = {
    "base_head_dim": 2048,
    "projection_dim": 1024,
    "pooled_dropout": 0.33,
    "base_head_dropout": 0.5,
    "hidden_dropout_prob": 0.3,
}
# Name of the row -> settings of the model. The control is FusionMatch without its branch.
ROWS = {
    "control: plain path alone": {"vision_feature_levels": [], "text_feature_levels": []},
    "FusionMatch, last level": {"vision_feature_levels": [-1], "text_feature_levels": [-1]},
    "FusionMatch, two levels": {"vision_feature_levels": [-6, -1], "text_feature_levels": [-1]},
}
RECALLS = [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]


def build(base: str, seed: int, **settings) -> FusionMatchModel:
    """The base with other settings: towers from the checkpoint, everything else freshly initialised with the seed."""
    config = FusionMatchConfig.from_pretrained(base, **COMMON, **settings)
    trained = FusionMatchModel.from_pretrained(base)
    set_seed(seed)
    model = FusionMatchModel(config)
    model.vision_model.load_state_dict(trained.vision_model.state_dict())
    model.text_model.load_state_dict(trained.text_model.state_dict())
    model.vision_model.requires_grad_(False)
    model.text_model.requires_grad_(False)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="starter base (fusionmatch starter OUT)")
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--num_train_epochs", type=float, default=40)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)

    splits = load_catalogue({"train": args.train_file, "validation": args.validation_file, "test": args.test_file})
    processor = AutoProcessor.from_pretrained(args.base)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    results_file = args.work_dir / "results.json"
    results = json.loads(results_file.read_text()) if results_file.is_file() else {}
    for name in args.rows:
        for seed in args.seeds:
            key = f"{name}, seed {seed}"
            if key in results:
                continue
            run = args.work_dir / key.replace(" ", "-").replace(",", "").replace(":", "")
            training = FusionMatchTrainingArguments(
                str(run),
                seed=seed,
                num_train_epochs=args.num_train_epochs,
                per_device_train_batch_size=args.batch_size,
                learning_rate=args.learning_rate,
                feature_cache_dir=str(args.work_dir / "features"),
                max_text_length=64,
                use_cpu=True,
            )
            model = build(args.base, seed, **ROWS[name])
            result = fit(model, processor, splits, training)
            gates = [
                fusion.residual.gate.tanh().item() for fusion in (model.vision_fusion, model.text_fusion) if fusion
            ]
            results[key] = result.after | {
                "trainable": result.trainable[-1][1],
                "seconds": result.seconds,
                "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "gates": gates,
            }
            results_file.write_text(json.dumps(results, indent=2) + "\n")

    print("| model | i→t R@1 / 5 / 10 | t→i R@1 / 5 / 10 | RSUM | trainable | training s | peak GB | gates |")
    print("|---|---|---|---|---|---|---|---|")
    for key, row in results.items():
        recalls = [f"{row[name]:.1f}" for name in RECALLS]
        gates = " ".join(f"{gate:.2f}" for gate in row["gates"]) or "-"
        print(
            f"| {key} | {' / '.join(recalls[:3])} | {' / '.join(recalls[3:])} | {row['rsum']:.1f} | "
            f"{row['trainable']:,} | {row['seconds']:.0f} | {row['peak_gb']:.1f} | {gates} |"
        )


if __name__ == "__main__":
    main()
