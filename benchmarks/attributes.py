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
Whether models find pictures by what they look like: each value of an attribute column is a query, and the pictures of
the held-out products that have it are what should come first.

    python benchmarks/attributes.py --catalogue products.csv --attribute_columns color pattern material \\
        --model_name_or_path with-branch without-branch

Prints the mean average precision for each column and model, and the difference of every further model to the first one
with a 95 % bootstrap interval over products. The catalogue is split as `fusionmatch adapt` splits it.
"""

import argparse

import numpy as np
from tqdm import trange

from fusionmatch import load_catalogue
from fusionmatch.evaluation.retrieval import embed_images, embed_texts
from fusionmatch.loading import load_pretrained


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Two arrays (queries, pictures) -> average precision of each query; NaN where nothing is relevant."""
    hits = np.take_along_axis(relevant, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    with np.errstate(invalid="ignore"):
        return (precision * hits).sum(axis=1) / hits.sum(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogue", required=True)
    parser.add_argument("--attribute_columns", nargs="+", required=True)
    parser.add_argument("--model_name_or_path", nargs="+", required=True)
    parser.add_argument("--separator", default="|", help="between values in one field")
    parser.add_argument("--template", default="{}", help="query around a value, such as 'a {} product'")
    parser.add_argument("--num_samples", type=int, default=1000, help="bootstrap samples")
    args = parser.parse_args()

    test = load_catalogue(args.catalogue)["test"]
    products, product = np.unique(test["product"], return_inverse=True)
    queries: list[tuple[str, str, np.ndarray]] = []
    for column in args.attribute_columns:
        fields = [{part.strip() for part in (field or "").split(args.separator)} for field in test[column]]
        for value in sorted({value for field in fields for value in field} - {""}):
            relevant = np.array([value in field for field in fields])
            if not relevant.all():
                queries.append((column, value, relevant))
    relevant = np.stack([rows for _, _, rows in queries])
    columns = np.array([column for column, _, _ in queries])
    texts = [args.template.format(value.lower()) for _, value, _ in queries]

    scores = {}
    for name in args.model_name_or_path:
        model, processor = load_pretrained(name)
        pictures = embed_images(model, processor, test["image"])
        scores[name] = (embed_texts(model, processor, texts) @ pictures.t()).numpy()

    generator = np.random.default_rng(0)
    rows_of = [np.flatnonzero(product == i) for i in range(len(products))]
    sampled: dict[tuple[str, str], list[float]] = {}
    for _ in trange(args.num_samples, desc="Bootstrap"):
        rows = np.concatenate([rows_of[i] for i in generator.integers(len(products), size=len(products))])
        for name in scores:
            found = average_precision(scores[name][:, rows], relevant[:, rows])
            for column in args.attribute_columns:
                sampled.setdefault((column, name), []).append(100 * np.nanmean(found[columns == column]))

    first = args.model_name_or_path[0]
    print(f"{len(test)} pictures of {len(products)} held-out products\n")
    print("| attribute | values | model | mAP | by chance | to the first |\n|---|---:|---|---:|---:|---|")
    for column in args.attribute_columns:
        chosen = columns == column
        chance = 100 * relevant[chosen].mean()
        for name in args.model_name_or_path:
            value = 100 * np.nanmean(average_precision(scores[name], relevant)[chosen])
            gain = ""
            if name != first:
                difference = np.array(sampled[column, name]) - np.array(sampled[column, first])
                base = 100 * np.nanmean(average_precision(scores[first], relevant)[chosen])
                low, high = np.quantile(difference, [0.025, 0.975])
                gain = f"{value - base:+.1f} [{low:+.1f}, {high:+.1f}]"
            print(f"| {column} | {chosen.sum()} | {name} | {value:.1f} | {chance:.1f} | {gain} |")


if __name__ == "__main__":
    main()
