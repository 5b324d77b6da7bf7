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
"""Results of each query: what the file holds, and what is made of it."""

import dataclasses

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch

from fusionmatch.evaluation.queries import Difference, QueryResults, compare, divide, recall_intervals
from fusionmatch.evaluation.retrieval import CatalogueEmbeddings


@pytest.fixture
def dataset():
    return datasets.Dataset.from_dict(
        {
            "image": ["", "", "", ""],
            "texts": [["a red mug"], ["a red mug"], ["a blue mug", "blue"], ["the lamp that stands beside the chair"]],
            "product": ["1", "1", "2", "3"],
            "image_id": ["1.png", "1b.png", "2.png", "3.png"],
            "category": ["mug", "mug", "mug", "lamp"],
            "price": [3.5, 3.5, 4.0, None],
            "tags": [["x"], [], [], []],
        }
    )


@pytest.fixture
def embeddings():
    """Everything finds its own, but the blue mug: its texts lie nearer to the lamp."""
    images = torch.eye(3)[[0, 0, 1, 2]]
    texts = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8], [0, 0.6, 0.8], [0, 0, 1.0]])
    return CatalogueEmbeddings(
        images,
        texts,
        ["1", "1", "2", "3"],
        ["1", "2", "2", "3"],
        ["a red mug", "a blue mug", "blue", "the lamp that stands beside the chair"],
    )


@pytest.fixture
def results(embeddings, dataset, tmp_path):
    path = QueryResults.from_embeddings(embeddings, dataset).save(tmp_path / "queries.parquet")
    return QueryResults.load(path)


def test_a_row_is_a_query_with_what_the_catalogue_says_of_it(results):
    rows = results.table.to_pylist()
    assert [row["direction"] for row in rows] == ["i2t"] * 4 + ["t2i"] * 4
    assert [row["query"] for row in rows[3:6]] == ["3.png", "a red mug", "a blue mug"]
    assert [row["rank"] for row in rows] == [1, 1, 1, 1, 1, 2, 2, 1]
    assert [row["category"] for row in rows] == ["mug", "mug", "mug", "lamp"] * 2
    assert [row["price"] for row in rows[4:]] == [3.5, 4.0, 4.0, None]
    assert rows[4]["average_precision"] == 1 and rows[5]["average_precision"] == 0
    assert not {"image", "texts", "tags"} & set(rows[0])
    assert {row["language"] for row in rows} == {"en"}
    assert {row["text_length"] for row in rows} == {"up to 40 characters"}


def test_the_catalogue_s_own_language_column_wins(embeddings, dataset):
    own = dataset.add_column("language", ["English", "English", "German", "English"])
    rows = QueryResults.from_embeddings(embeddings, own).table.to_pylist()
    assert [row["language"] for row in rows[:4]] == ["English", "English", "German", "English"]
    assert "language_source" not in rows[0]


def test_rows_made_by_hand_go_by_their_number(embeddings, dataset):
    results = QueryResults.from_embeddings(embeddings, dataset.remove_columns("image_id"))
    assert results.side("i2t", "query") == ["0", "1", "2", "3"]


def test_columns_of_the_catalogue_with_our_names_keep_theirs_apart(embeddings, dataset, tmp_path):
    dataset = dataset.add_column("rank", ["first", "first", "second", "third"]).add_column("query", [1, 2, 3, 4])
    path = QueryResults.from_embeddings(embeddings, dataset).save(tmp_path / "queries.parquet")
    results = QueryResults.load(path)
    assert set(divide(results, "rank_source")) == {"first", "second", "third"}
    assert "query_source" in results.table.column_names
    assert results.ranks[0].tolist() == [1, 1, 1, 1]


def test_recalls_are_those_of_the_metrics(results, embeddings):
    metrics = embeddings.metrics()
    for name, interval in recall_intervals([results]).items():
        assert interval.value == pytest.approx(metrics[name])


def test_two_models_are_compared_on_the_same_queries_only(results, embeddings, dataset):
    embeddings = dataclasses.replace(embeddings, text_embeds=torch.eye(3)[[0, 1, 1, 2]])
    better = QueryResults.from_embeddings(embeddings, dataset)
    found = compare([better], [results])
    assert found["t2i_recall@1"].value == pytest.approx(50)
    assert found["i2t_recall@1"].value == 0 and found["i2t_recall@1"].p_value == 1
    # One product of three differs: that is as good as nothing.
    assert found["rsum"].p_value == 1 and found["rsum"].verdict == "no difference shown"
    other = QueryResults(better.table.slice(1))
    with pytest.raises(ValueError, match="different queries"):
        compare([other], [results])


@pytest.mark.parametrize(
    ("ends", "p_value", "verdict"),
    [
        ((1, 5), 0.01, "better"),
        ((-5, -1), 0.01, "worse"),
        ((-1, 5), 0.01, "no difference shown"),
        ((1, 5), 0.06, "no difference shown"),
    ],
)
def test_the_verdict_takes_both_the_interval_and_the_test(ends, p_value, verdict):
    assert Difference(sum(ends) / 2, *ends, p_value).verdict == verdict


def test_values_of_a_column_have_queries_of_their_own(results):
    parts = divide(results, "category")
    assert list(parts) == ["mug", "lamp"]
    assert recall_intervals([parts["mug"]])["t2i_recall@1"].value == pytest.approx(100 / 3)
    assert recall_intervals([parts["lamp"]])["rsum"].value == 600
    assert list(divide(results, "price")) == ["3.5", "4.0"]
    with pytest.raises(ValueError, match=r"no column 'colour'.*language, text_length, category, price"):
        divide(results, "colour")


def test_means_leave_out_what_has_nothing_to_find(results):
    assert results.summary["t2i_mrr"] == pytest.approx(3 / 4)
    assert results.summary["t2i_median_rank"] == 1
    rows = results.table.to_pylist()
    rows[7] |= {"rank": 0, "average_precision": float("nan"), "ndcg@10": float("nan")}
    means = QueryResults(pyarrow.Table.from_pylist(rows, schema=results.table.schema)).summary
    assert means["t2i_mrr"] == pytest.approx(2 / 3)
    assert means["t2i_map@r"] == pytest.approx(1 / 3)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.parquet"):
        QueryResults.load(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ValueError, match="no Parquet file"):
        QueryResults.load(tmp_path / "text.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"rank": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"direction.*are missing.*--queries_file"):
        QueryResults.load(tmp_path / "other.parquet")
