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
"""Image-text retrieval metrics as an `evaluate` module."""

import datasets
import evaluate
import numpy as np

from fusionmatch.evaluation.ranking import retrieval_metrics


_DESCRIPTION = """
Image-text retrieval ranks all texts for an image, and all images for a text, by the cosine similarity of their
embeddings. An image and a text match if they belong to the same product; an item may have many matches. Recall@k is
the percentage of queries with at least one match among the first k, as in the literature on Flickr30k and COCO. Ties
count against the model.
"""

_KWARGS_DESCRIPTION = """
One example is one item, an image or a text. Images and texts may come in any order and in any number.

Args:
    embeddings (`list` of `list` of `float`): the embedding of each item, of any length; all of one width.
    modalities (`list` of `str`): `"image"` or `"text"`, one an item.
    products (`list` of `str`): the product that each item belongs to.
    ks (`list` of `int`, *optional*, defaults to `[1, 5, 10]`): depths at which recall is reported.

Returns:
    `dict` with, for `i2t` (an image is the query, texts are ranked) and `t2i` (the reverse):

    - `{i2t,t2i}_recall@{k}` (`float`): percentage of queries with a match among the first k, 0 to 100.
    - `{i2t,t2i}_median_rank` (`float`): median rank of the first match, from 1.
    - `{i2t,t2i}_mrr` (`float`): mean reciprocal rank of the first match, 0 to 1.
    - `{i2t,t2i}_queries` (`int`): number of queries that have a match; the others are left out.
    - `rsum` (`float`): sum of the six recalls at 1, 5 and 10, 0 to 600. Only if `ks` holds 1, 5 and 10.
    - `chance_{i2t,t2i}_recall@{k}`, `chance_rsum` (`float`): what a random ranking is expected to reach.
    - `images`, `texts` (`int`): sizes of the galleries.

Examples:

    >>> import evaluate
    >>> from fusionmatch.evaluation import metric_path
    >>> metric = evaluate.load(str(metric_path("image_text_retrieval")))
    >>> results = metric.compute(
    ...     embeddings=[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.8, 0.2]],
    ...     modalities=["image", "image", "text", "text"],
    ...     products=["cup", "shoe", "cup", "shoe"],
    ...     ks=[1],
    ... )
    >>> results["i2t_recall@1"], results["t2i_recall@1"]
    (100.0, 50.0)
"""

_CITATION = """
@inproceedings{faghri2018vsepp,
  title={{VSE++}: Improving Visual-Semantic Embeddings with Hard Negatives},
  author={Faghri, Fartash and Fleet, David J. and Kiros, Jamie Ryan and Fidler, Sanja},
  booktitle={Proceedings of the British Machine Vision Conference (BMVC)},
  year={2018}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ImageTextRetrieval(evaluate.Metric):
    """Recall@k, median rank and mean reciprocal rank of image-text retrieval."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "embeddings": datasets.Sequence(datasets.Value("float32")),
                    "modalities": datasets.Value("string"),
                    "products": datasets.Value("string"),
                }
            ),
        )

    def _compute(
        self, embeddings: list[list[float]], modalities: list[str], products: list[str], ks: list[int] | None = None
    ) -> dict[str, float]:
        unknown = sorted(set(modalities) - {"image", "text"})
        if unknown:
            raise ValueError(f'`modalities` must hold "image" or "text", got {unknown}.')
        widths = sorted({len(row) for row in embeddings})
        if len(widths) > 1:
            raise ValueError(f"All embeddings must have one width, got embeddings of {widths} dimensions.")
        matrix, products, images = np.array(embeddings), np.array(products), np.array(modalities) == "image"
        if images.all() or not images.any():
            raise ValueError(f"Retrieval needs both sides, got {images.sum()} images and {(~images).sum()} texts.")
        return retrieval_metrics(
            matrix[images],
            matrix[~images],
            products[images],
            products[~images],
            ks=(1, 5, 10) if ks is None else ks,
        )
