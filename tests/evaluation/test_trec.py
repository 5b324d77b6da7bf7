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
"""Runs go out as TREC files and come back with the same results."""

import datasets
import pytest
import torch

from fusionmatch.evaluation.queries import QueryResults, compare
from fusionmatch.evaluation.retrieval import CatalogueEmbeddings, unique_texts
from fusionmatch.evaluation.trec import read_trec, write_trec


@pytest.fixture
def split():
    products = [str(i // 2) for i in range(20)]
    columns = {"texts": [[f"thing {p}", f"no {i}"] for i, p in enumerate(products)], "product": products}
    dataset = datasets.Dataset.from_dict(columns | {"image_id": [f"my pictures/{i}.png" for i in range(20)]})
    generator = torch.Generator().manual_seed(0)
    texts, text_products = unique_texts(dataset)
    vectors = [torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (20, len(texts))]
    return CatalogueEmbeddings(*vectors, products, text_products, texts), dataset


def test_a_run_comes_back_as_it_was(split, tmp_path):
    ours = QueryResults.from_embeddings(*split)
    again = read_trec(write_trec(tmp_path / "runs", *split), split[1])
    assert [ranks.tolist() for ranks in again.ranks] == [ranks.tolist() for ranks in ours.ranks]
    for name in ("average_precision", "ndcg@10"):
        assert again.table[name].to_pylist() == pytest.approx(ours.table[name].to_pylist())
    assert compare([again], [ours])["rsum"].value == 0
    assert (tmp_path / "runs" / "images.tsv").read_text().splitlines()[3] == "image-3\tmy pictures/3.png"
    assert (tmp_path / "runs" / "t2i.qrels").read_text().splitlines()[0] == "text-0 0 image-0 1"


def test_a_run_of_another_split_is_refused(split, tmp_path):
    write_trec(tmp_path, *split)
    other = split[1].select(range(19, -1, -1))
    with pytest.raises(ValueError, match="is of another split"):
        read_trec(tmp_path, other)


def test_ties_and_what_is_not_listed_count_against_a_run(split, tmp_path):
    (tmp_path / "t2i.run").write_text("text-0 Q0 image-0 1 0.5 x\ntext-0 Q0 image-9 2 0.5 x\n")
    (tmp_path / "i2t.run").write_text("")
    found = read_trec(tmp_path, split[1])
    images, texts = found.ranks
    assert images.tolist() == [len(split[0].texts)] * 20
    assert texts[0] == 2 and set(texts[1:].tolist()) == {20}
    assert found.side("t2i", "average_precision")[0] == pytest.approx(1 / 2 / 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("text-0 image-0 1 0.5", "line 1: a run has six fields"),
        ("text-0 Q0 image-0 1 high x", "line 1: a run has six fields"),
        ("text-0 Q0 image-20 1 0.5 x", "that this split does not hold"),
        ("text-0 Q0 image-0 1 nan x", "or no score"),
    ],
)
def test_other_files_are_refused(line, words, split, tmp_path):
    write_trec(tmp_path, *split)
    (tmp_path / "t2i.run").write_text(line + "\n")
    with pytest.raises(ValueError, match=words):
        read_trec(tmp_path, split[1])
    (tmp_path / "t2i.run").unlink()
    with pytest.raises(FileNotFoundError, match="no run at"):
        read_trec(tmp_path, split[1])
