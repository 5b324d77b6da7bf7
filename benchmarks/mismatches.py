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
How many swapped texts `fusionmatch listings` finds, and how many of what it finds are swapped.

    python benchmarks/mismatches.py --catalogue products.csv --shares 0.03 0.1          (starter base, never trained)
    python benchmarks/mismatches.py --catalogue products.csv --model_name_or_path calibrated --held_out

A share of the products exchange their texts, over and over with other ones. *Found* and *right* are of the rows with a
suspicion above 0.5; *among the worst* is the share of swapped rows among as many of the worst rows as were swapped.
With a calibrated model (`fusionmatch calibrate`) a second line has its probabilities besides. `--held_out` swaps and
counts only what the default split keeps out of the training, as what the model learnt from it knows; a small part of
that, the validation products, chose its best epoch and made its calibration.
"""

import argparse

import torch
from speed import base_and_catalogue

from fusionmatch.catalogue import read_catalogue
from fusionmatch.evaluation.calibration import load_calibration
from fusionmatch.evaluation.mismatches import (
    SUSPICIOUS,
    own_texts,
    pair_probabilities,
    suspicious_listings,
    tower_vectors,
)
from fusionmatch.evaluation.retrieval import embed_catalogue
from fusionmatch.loading import load_pretrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="checkpoint or adapter; without, the starter base")
    parser.add_argument("--calibration_dir", help="folder of calibration.json; defaults to the model's own")
    parser.add_argument("--catalogue", help="catalogue; without, the sample shop")
    parser.add_argument("--held_out", action="store_true", help="only products that the default split holds out")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.03, 0.1])
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    with base_and_catalogue(args.model_name_or_path, args.catalogue) as (base, catalogue):
        model, processor = load_pretrained(base)
        intake = read_catalogue(catalogue)
        dataset = intake.dataset
        images, texts = tower_vectors(model, processor, dataset)
        pairs = load_calibration(args.calibration_dir or base, model).get("pairs")
        if pairs is not None:
            found = embed_catalogue(model, processor, dataset, ranking_top_k=0)
            places = own_texts(found, dataset)
    products = list(dataset["product"])
    first = {name: row for row, name in reversed(list(enumerate(products)))}
    kept = {name for split, part in intake.split().items() if split != "train" for name in part["product"]}
    names = [name for name in dict.fromkeys(products) if not args.held_out or name in kept]
    counted = torch.tensor([product in set(names) for product in products])
    print("| swapped | told by | rows | found | right | among the worst |\n|---:|---|---:|---:|---:|---:|")
    for share in args.shares:
        sums = torch.zeros(2, 4, dtype=torch.float64)
        for repeat in range(args.repeats):
            generator = torch.Generator().manual_seed(repeat)
            chosen = torch.randperm(len(names), generator=generator)[: max(2, round(share * len(names)))].tolist()
            other = {names[a]: names[b] for a, b in zip(chosen, chosen[1:] + chosen[:1], strict=True)}
            swapped = torch.tensor([product in other for product in products])
            source = [first[other[product]] if product in other else row for row, product in enumerate(products)]
            told = [None]
            if pairs is not None:
                told.append(pair_probabilities(found, [places[row] for row in source], pairs))
            for i, probabilities in enumerate(told):
                every = suspicious_listings(images, texts[source], products, -1, probabilities)
                order = torch.tensor([listing.row for listing in every if counted[listing.row]])
                flagged = [each.row for each in every if each.suspicion > SUSPICIOUS and counted[each.row]]
                hits = sum(swapped[row].item() for row in flagged)
                worst = swapped[order[: int(swapped.sum())]].double().mean()
                sums[i] += torch.tensor([swapped.sum(), hits / swapped.sum(), hits / max(1, len(flagged)), worst])
        for line, by in zip((sums / args.repeats).tolist()[: len(told)], ("towers", "towers and model"), strict=False):
            rows, recall, precision, among = line
            print(f"| {share:.0%} | {by} | {rows:.0f} | {recall:.0%} | {precision:.0%} | {among:.0%} |", flush=True)


if __name__ == "__main__":
    main()
