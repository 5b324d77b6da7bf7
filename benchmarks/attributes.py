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
        --model_name_or_path without-branch-{split} with-branch-{split} --split_seeds 0 1 2

Prints the mean average precision for each column and model, and the difference of every further model to the first one
with a 95 % bootstrap interval over products. The catalogue is split as `fusionmatch adapt --split_seed` splits it;
with several splits, each with models of its own, the mean over them counts, and a product that is held out in several
of them is drawn for all of them at once.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from tqdm import trange

from fusionmatch import load_catalogue
from fusionmatch.evaluation.retrieval import embed_images, embed_texts
from fusionmatch.loading import load_pretrained


@dataclass
class Split:
    """
    The held-out pictures of one split and what the models say of them.

    Args:
        rows (`dict[str, np.ndarray]`): Rows of each product.
        columns (`np.ndarray`): Attribute column of each query.
        relevant (`np.ndarray` of shape `(queries, pictures)`): Whether the picture has the value.
        scores (`list[np.ndarray]`, each of shape `(queries, pictures)`): One a model.
    """

    rows: dict[str, np.ndarray]
    columns: np.ndarray
    relevant: np.ndarray
    scores: list[np.ndarray]

    def precision(self, model: int, column: str, rows: np.ndarray) -> float:
        """Mean average precision of a column's values among these rows, in percent."""
        chosen = self.columns == column
        found = average_precision(self.scores[model][chosen][:, rows], self.relevant[chosen][:, rows])
        return 100 * np.nanmean(found)


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Two arrays (queries, pictures) -> average precision of each query; NaN where nothing is relevant."""
    hits = np.take_along_axis(relevant, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    with np.errstate(invalid="ignore"):
        return (precision * hits).sum(axis=1) / hits.sum(axis=1)


def measure(args: argparse.Namespace, seed: int) -> Split:
    """Reads one split's models and scores its held-out pictures."""
    test = load_catalogue(args.catalogue, seed=seed)["test"]
    queries: list[tuple[str, str, np.ndarray]] = []
    for column in args.attribute_columns:
        fields = [{part.strip() for part in (field or "").split(args.separator)} for field in test[column]]
        for value in sorted({value for field in fields for value in field} - {""}):
            relevant = np.array([value in field for field in fields])
            if not relevant.all():
                queries.append((column, args.template.format(value.lower()), relevant))
    scores = []
    for name in args.model_name_or_path:
        model, processor = load_pretrained(name.replace("{split}", str(seed)))
        pictures = embed_images(model, processor, test["image"])
        scores.append((embed_texts(model, processor, [text for _, text, _ in queries]) @ pictures.t()).numpy())
    products = np.array(test["product"])
    return Split(
        {name: np.flatnonzero(products == name) for name in np.unique(products).tolist()},
        np.array([column for column, _, _ in queries]),
        np.stack([relevant for _, _, relevant in queries]),
        scores,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogue", required=True)
    parser.add_argument("--attribute_columns", nargs="+", required=True)
    parser.add_argument("--model_name_or_path", nargs="+", required=True, help="{split} stands for the split's seed")
    parser.add_argument("--split_seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--separator", default="|", help="between values in one field")
    parser.add_argument("--template", default="{}", help="query around a value, such as 'a {} product'")
    parser.add_argument("--num_samples", type=int, default=1000, help="bootstrap samples")
    args = parser.parse_args()

    splits = [measure(args, seed) for seed in args.split_seeds]
    products = sorted({name for split in splits for name in split.rows})
    names, columns = args.model_name_or_path, args.attribute_columns
    shape = (len(columns), len(names))

    def means(drawn: list[str]) -> np.ndarray:
        """Mean over the splits, of shape (columns, models), where these products are what is searched in."""
        found = np.empty((len(splits), *shape))
        for i, split in enumerate(splits):
            rows = np.concatenate([split.rows[name] for name in drawn if name in split.rows])
            for place in np.ndindex(shape):
                found[(i, *place)] = split.precision(place[1], columns[place[0]], rows)
        return found.mean(axis=0)

    generator = np.random.default_rng(0)
    value = means(products)
    sampled = np.stack(
        [
            means(generator.choice(products, size=len(products)).tolist())
            for _ in trange(args.num_samples, desc="Bootstrap")
        ]
    )
    pictures = [split.relevant.shape[1] for split in splits]
    print(f"{sum(pictures)} pictures in {len(splits)} split(s), {len(products)} held-out products\n")
    print("| attribute | values | model | mAP | by chance | to the first |\n|---|---:|---|---:|---:|---|")
    for i, column in enumerate(columns):
        values = np.mean([(split.columns == column).sum() for split in splits])
        chance = np.mean([100 * split.relevant[split.columns == column].mean() for split in splits])
        for j, name in enumerate(names):
            gain = ""
            if j:
                low, high = np.nanquantile(sampled[:, i, j] - sampled[:, i, 0], [0.025, 0.975])
                gain = f"{value[i, j] - value[i, 0]:+.1f} [{low:+.1f}, {high:+.1f}]"
            print(f"| {column} | {values:.0f} | {name} | {value[i, j]:.1f} | {chance:.1f} | {gain} |")


if __name__ == "__main__":
    main()
