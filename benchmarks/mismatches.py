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
How many swapped texts `fusionmatch check --mismatches` finds, and how many of what it finds are swapped.

    python benchmarks/mismatches.py --catalogue products.csv --shares 0.03 0.1          (starter base, never trained)

A share of the products exchange their texts, over and over with other ones. *Found* and *right* are of the rows with a
suspicion above 0.5; *among the worst* is the share of swapped rows among as many of the worst rows as were swapped.
"""

import argparse

import torch
from speed import base_and_catalogue

from fusionmatch.catalogue import read_catalogue
from fusionmatch.evaluation.mismatches import SUSPICIOUS, suspicions, tower_vectors
from fusionmatch.loading import load_pretrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="checkpoint; without, the starter base")
    parser.add_argument("--catalogue", help="catalogue; without, the sample shop")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.03, 0.1])
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    with base_and_catalogue(args.base, args.catalogue) as (base, catalogue):
        model, processor = load_pretrained(base)
        dataset = read_catalogue(catalogue).dataset
        images, texts = tower_vectors(model, processor, dataset)
    products = list(dataset["product"])
    names = list(dict.fromkeys(products))
    first = {name: products.index(name) for name in names}
    print("| swapped | rows | found | right | among the worst | twice the found |\n|---:|---:|---:|---:|---:|---:|")
    for share in args.shares:
        sums = torch.zeros(5, dtype=torch.float64)
        for repeat in range(args.repeats):
            generator = torch.Generator().manual_seed(repeat)
            chosen = torch.randperm(len(names), generator=generator)[: max(2, round(share * len(names)))].tolist()
            other = {names[a]: names[b] for a, b in zip(chosen, chosen[1:] + chosen[:1], strict=True)}
            swapped = torch.tensor([product in other for product in products])
            given = texts.clone()
            for row, product in enumerate(products):
                if product in other:
                    given[row] = texts[first[other[product]]]
            found, _ = suspicions(images, given, products)
            flagged, worst = found > SUSPICIOUS, found.argsort(descending=True)[: int(swapped.sum())]
            hits = (flagged & swapped).sum()
            shares = (hits / swapped.sum(), hits / flagged.sum().clamp(min=1), swapped[worst].double().mean())
            sums += torch.tensor([swapped.sum(), *shares, 2 * flagged.sum()])
        rows, recall, precision, among, estimate = (sums / args.repeats).tolist()
        print(
            f"| {share:.0%} | {rows:.0f} | {recall:.0%} | {precision:.0%} | {among:.0%} | {estimate:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
