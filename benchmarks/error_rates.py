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
How often the statistics of an evaluation are wrong, by simulation: two models that differ in chance alone, and
intervals around a recall that is known; and how far probabilities of first hits are from the share that is right.

    python benchmarks/error_rates.py --comparisons 1000 --products 30 100 400

Products differ in how hard they are and in how many pictures and texts they have; what is found of one product
correlates. Aims: 3 to 7 % of the comparisons are significant at 5 %, and 93 to 97 % of the 95 % intervals hold the
truth; the calibration error on other queries is at most 0.05, and the threshold for a precision of 95 % gives 93 to
97 %.
"""

import argparse
import itertools

import torch
from tqdm import tqdm

from fusionmatch.evaluation.calibration import (
    Calibration,
    FirstHits,
    calibration_error,
    first_hits,
    precision_and_coverage,
)
from fusionmatch.evaluation.intervals import Ranks, bootstrap_recalls, permutation_test


def split(products: int, recall: float, generator: torch.Generator) -> tuple[list[int], list[int], torch.Tensor]:
    """Products of one to five pictures and one to three texts each, and how easy each product is."""
    image_products = torch.arange(products).repeat_interleave(torch.randint(1, 6, (products,), generator=generator))
    text_products = torch.arange(products).repeat_interleave(torch.randint(1, 4, (products,), generator=generator))
    # Powers of uniform numbers have any mean; with one half, what is found of one product has a correlation of 1/3.
    easy = torch.rand(products, generator=generator) ** ((1 - recall) / recall)
    return image_products.tolist(), text_products.tolist(), easy


def run(sides: tuple[list[int], list[int]], easy: torch.Tensor, generator: torch.Generator) -> Ranks:
    """Found at rank 1 with the product's own probability, else at rank 99."""
    found = (torch.rand(len(side), generator=generator) < easy[side] for side in sides)
    return tuple(torch.where(hit, 1, 99) for hit in found)


def queries(number: int, generator: torch.Generator) -> FirstHits:
    """Queries for one of 600 products on a sphere of 12 dimensions, more or less near to their own."""
    gallery = torch.randn(600, 12, generator=generator)
    noise = torch.rand(number, 1, generator=generator) * torch.randn(number, 12, generator=generator) * 1.5
    rows = torch.randint(600, (number,), generator=generator)
    asked, offered = (torch.nn.functional.normalize(part, dim=1) for part in (gallery[rows] + noise, gallery))
    return first_hits(asked, [str(row) for row in rows.tolist()], offered, [str(row) for row in range(600)])


def calibrations(fitted_on: list[int], repeats: int, generator: torch.Generator) -> None:
    """Fits, then measures on 5,000 queries in another catalogue of the same kind."""
    print(
        "\n| fitted on | calibration error, mean | largest | precision wanted 95 %, mean | within 93 to 97 % "
        "| none sure enough |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    for number in fitted_on:
        errors, precisions = [], []
        for _ in tqdm(range(repeats), desc=f"{number} queries", leave=False):
            calibration, held_out = Calibration.fit(queries(number, generator)), queries(5000, generator)
            errors.append(calibration_error(calibration, held_out))
            precisions.append(precision_and_coverage(calibration, held_out, 0.95)[0])
        found = torch.tensor(precisions)
        none = found.isnan()
        found = found[~none]
        within = ((found >= 0.93) & (found <= 0.97)).double().mean()
        mean = sum(errors) / repeats
        print(
            f"| {number:,} | {mean:.3f} | {max(errors):.3f} | {found.mean():.1%} | {within:.0%} | {none.sum()} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--products", type=int, nargs="+", default=[30, 100, 400])
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.5, 0.95], help="true ones")
    parser.add_argument("--samples", type=int, default=1000, help="of bootstrap and permutation test")
    parser.add_argument("--queries", type=int, nargs="*", default=[100, 300, 1000, 3000], help="to calibrate on")
    parser.add_argument("--calibrations", type=int, default=100)
    args = parser.parse_args()
    print("| products | true R@1 | p <= 0.05 | interval of the change without 0 | interval of R@1 with the truth |")
    print("|---:|---:|---:|---:|---:|")
    generator = torch.Generator().manual_seed(0)
    for recall, products in itertools.product(args.recalls, args.products):
        significant = apart = covered = 0
        for _ in tqdm(range(args.comparisons), desc=f"{products} products", leave=False):
            *sides, easy = split(products, recall, generator)
            one, two = (run(sides, easy, generator) for _ in range(2))
            options = {"ks": (1,), "num_samples": args.samples}
            significant += permutation_test([one], [two], *sides, **options)["rsum"] <= 0.05
            change = bootstrap_recalls([one], *sides, baseline=[two], **options)["rsum"]
            apart += not change.low <= 0 <= change.high
            found = bootstrap_recalls([one], *sides, **options)["i2t_recall@1"]
            covered += found.low <= 100 * recall <= found.high
        rates = [f"{count / args.comparisons:.1%}" for count in (significant, apart, covered)]
        print(f"| {products} | {recall:.0%} | {' | '.join(rates)} |", flush=True)
    calibrations(args.queries, args.calibrations, generator)


if __name__ == "__main__":
    main()
