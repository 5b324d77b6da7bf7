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
import math
import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionmatch.evaluation.ranking import chance_recall, rank_of_first_relevant, ranking_quality, retrieval_metrics


def angles(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    def unit(rows):
        rows = rows.astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(lengths == 0, 1, lengths)

    # Rounding makes equal cosines equal; on the small grids used below, different ones differ by far more.
    return (unit(first) @ unit(second).T).round(9)


def ranks_by_hand(queries, items, query_products, item_products) -> list[int]:
    ranks = []
    for scores, product in zip(cosines(queries, items), query_products, strict=True):
        relevant = [score for score, other in zip(scores, item_products, strict=True) if other == product]
        irrelevant = [score for score, other in zip(scores, item_products, strict=True) if other != product]
        ranks.append(1 + sum(bool(score >= max(relevant)) for score in irrelevant) if relevant else 0)
    return ranks


@st.composite
def catalogues(draw):
    """Embeddings on a coarse grid (hence zero vectors, copies, ties) and few products (hence many positives)."""
    dim = draw(st.integers(1, 3))
    vector = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    sides = []
    for _ in range(2):
        rows = draw(st.lists(st.tuples(vector, st.sampled_from("abcde")), min_size=1, max_size=12))
        sides.append((np.array([row for row, _ in rows], dtype=np.float32), [product for _, product in rows]))
    return sides


def test_five_captions_an_image():
    """Two images at 0 and 40 degrees, five captions each; nearest in angle is first."""
    images, texts = angles(0, 40), angles(5, 30, 35, 60, 80, 38, 42, 10, 2, 90)
    metrics = retrieval_metrics(images, texts, ["a", "b"], ["a"] * 5 + ["b"] * 5)
    assert metrics == pytest.approx(
        {
            # Image a finds the caption of b at 2 degrees first, then its own at 5; any one of the five is enough.
            "i2t_recall@1": 50,
            "i2t_recall@5": 100,
            "i2t_recall@10": 100,
            "i2t_median_rank": 1,  # of ranks 2 and 1: floor(0.5) + 1
            "i2t_mrr": 0.75,
            "i2t_queries": 2,
            # 5, 38, 42 and 90 degrees are nearest to their own image.
            "t2i_recall@1": 40,
            "t2i_recall@5": 100,
            "t2i_recall@10": 100,
            "t2i_median_rank": 2,
            "t2i_mrr": 0.7,
            "t2i_queries": 10,
            "rsum": 490,
            # i2t: 5 of 10 are relevant, 1 - C(5,5)/C(10,5) at 5; t2i: 1 of 2.
            "chance_i2t_recall@1": 50,
            "chance_i2t_recall@5": 100 * (1 - 1 / 252),
            "chance_i2t_recall@10": 100,
            "chance_t2i_recall@1": 50,
            "chance_t2i_recall@5": 100,
            "chance_t2i_recall@10": 100,
            "chance_rsum": 50 + 100 * (1 - 1 / 252) + 100 + 50 + 100 + 100,
            "images": 2,
            "texts": 10,
        }
    )


def test_several_pictures_of_a_product():
    """Three pictures share one text; the picture that is nearest to the text decides its rank."""
    images, texts = angles(0, 50, 100, 9), angles(12, 8)
    metrics = retrieval_metrics(images, texts, [7, 7, 7, 8], [7, 8], ks=(1, 2))
    # Text 7 at 12 degrees: picture 8 (at 9) first, then its own at 0. Text 8 at 8 degrees: its own (at 9) first.
    assert (metrics["t2i_recall@1"], metrics["t2i_recall@2"]) == (50, 100)
    # Of the pictures of 7, the one at 0 degrees is nearer to the text of 8; the two at 50 and 100 find their own.
    assert metrics["i2t_recall@1"] == 75
    assert "rsum" not in metrics
    assert "chance_rsum" not in metrics


def test_queries_without_a_counterpart_are_left_out_but_stay_in_the_gallery():
    images, texts = angles(0, 90, 45), angles(0, 90, 44)
    metrics = retrieval_metrics(images, texts, ["a", "b", "only image"], ["a", "b", "only text"], ks=(1, 3))
    assert (metrics["i2t_queries"], metrics["t2i_queries"], metrics["images"], metrics["texts"]) == (2, 2, 3, 3)
    assert metrics["i2t_recall@1"] == metrics["t2i_recall@1"] == 100
    ranks = rank_of_first_relevant(angles(40, 0, 45), texts, ["a", "b", "only image"], ["a", "b", "only text"])
    # From 40 degrees the text of no product at 44 comes first; from 0 degrees, b at 90 comes last.
    assert ranks.tolist() == [2, 3, 0]
    assert ranks.dtype == torch.long


@pytest.mark.parametrize("vector", [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
def test_a_collapsed_model_gets_the_worst_rank(vector):
    embeds = torch.tensor([vector]).expand(30, 3)
    metrics = retrieval_metrics(embeds, embeds, range(30), range(30), chunk_size=7)
    assert metrics["rsum"] == 0
    assert metrics["i2t_median_rank"] == metrics["t2i_median_rank"] == 30
    assert metrics["i2t_mrr"] == pytest.approx(1 / 30)


@pytest.mark.parametrize(("dim", "chunk_size"), [(3, 5), (256, 64), (256, 333), (769, 1024)])
def test_copies_of_a_vector_tie_wherever_they_stand(dim, chunk_size):
    """Every query's own item has three copies under other products: its rank is 4, whatever tile each lies in."""
    generator = torch.Generator().manual_seed(dim)
    vectors = torch.rand(301, dim, generator=generator) + 0.1
    # Copies at another scale, by a power of two, are exactly the same direction.
    items = torch.cat([vectors, vectors, 2 * vectors, 0.25 * vectors])
    products = list(range(301)) + [f"other {index}" for index in range(903)]
    order = torch.randperm(len(items), generator=generator).tolist()
    ranks = rank_of_first_relevant(
        vectors, items[order], range(301), [products[index] for index in order], chunk_size=chunk_size
    )
    assert (ranks == 4).all()


def test_scores_that_truly_differ_are_not_ties():
    """A hundred-millionth of a degree decides, where float32 would see a tie."""
    items = angles(1, 1 + 1e-8)
    assert rank_of_first_relevant(angles(0), items, ["a"], ["a", "b"]).tolist() == [1]
    assert rank_of_first_relevant(angles(0), items, ["b"], ["a", "b"]).tolist() == [2]


@settings(deadline=None, max_examples=150)
@given(catalogues(), st.integers(1, 13))
def test_ranks_equal_counting_by_hand_for_every_chunk_size(catalogue, chunk_size):
    (images, image_products), (texts, text_products) = catalogue
    ranks = rank_of_first_relevant(images, texts, image_products, text_products, chunk_size=chunk_size)
    assert ranks.tolist() == ranks_by_hand(images, texts, image_products, text_products)


@settings(deadline=None, max_examples=75)
@given(catalogues(), st.randoms(use_true_random=False), st.integers(1, 13))
def test_metrics_depend_neither_on_order_nor_on_chunk_size(catalogue, random, chunk_size):
    (images, image_products), (texts, text_products) = catalogue
    texts, text_products = np.concatenate([texts, images[:1]]), [*text_products, image_products[0]]
    expected = retrieval_metrics(images, texts, image_products, text_products)
    image_order = random.sample(range(len(images)), len(images))
    text_order = random.sample(range(len(texts)), len(texts))
    shuffled = retrieval_metrics(
        images[image_order],
        texts[text_order],
        [image_products[index] for index in image_order],
        [text_products[index] for index in text_order],
        chunk_size=chunk_size,
    )
    assert shuffled == pytest.approx(expected, abs=1e-12)
    swapped = retrieval_metrics(texts, images, text_products, image_products)
    assert {key.translate(str.maketrans("it", "ti")) for key in swapped} >= {"t2i_mrr"}
    for name in ("recall@1", "recall@5", "recall@10", "median_rank", "mrr", "queries"):
        assert (swapped[f"i2t_{name}"], swapped[f"t2i_{name}"]) == (expected[f"t2i_{name}"], expected[f"i2t_{name}"])


def test_same_as_ranx(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import numba

        # Compiling ranx takes half a minute; as plain Python it is quick enough for these tables.
        monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
        from ranx import Qrels, Run, evaluate

    for seed in range(20):
        generator = np.random.default_rng(seed)
        images, texts = generator.normal(size=(30, 8)), generator.normal(size=(60, 8))
        # Every product has an image and a text, for ranx cannot leave a query out; most have several.
        image_products = np.concatenate([np.arange(12), generator.integers(12, size=18)])
        text_products = np.concatenate([np.arange(12), generator.integers(12, size=48)])
        ours = retrieval_metrics(images, texts, image_products, text_products)
        scores = cosines(images, texts)
        sides = (
            ("i2t", scores, image_products, text_products),
            ("t2i", scores.T, text_products, image_products),
        )
        for direction, table, query_products, item_products in sides:
            run = {f"q{q}": {f"d{d}": score for d, score in enumerate(row)} for q, row in enumerate(table)}
            qrels = {
                f"q{q}": {f"d{d}": 1 for d in np.flatnonzero(item_products == product)}
                for q, product in enumerate(query_products)
            }
            names = ["hit_rate@1", "hit_rate@5", "hit_rate@10", "mrr", "ndcg@10"]
            theirs = evaluate(Qrels(qrels), Run(run), names, make_comparable=False)
            for k in (1, 5, 10):
                assert ours[f"{direction}_recall@{k}"] / 100 == pytest.approx(theirs[f"hit_rate@{k}"], abs=1e-9)
            assert ours[f"{direction}_mrr"] == pytest.approx(theirs["mrr"], abs=1e-9)
            sides_of_one = (images, texts) if direction == "i2t" else (texts, images)
            _, gain = ranking_quality(*sides_of_one, query_products, item_products, chunk_size=9)
            assert gain.mean().item() == pytest.approx(theirs["ndcg@10"], abs=1e-9)


def test_average_precision_looks_at_as_many_as_there_are():
    # Degrees from the query: of its three items two come among the first three, at 1 and 3; the last is never reached.
    items = angles(10, 20, 30, 40, 50)
    precision, gain = ranking_quality(angles(0), items, ["a"], ["a", "b", "a", "b", "a"], k=2)
    assert precision.item() == pytest.approx((1 + 2 / 3) / 3)
    assert gain.item() == pytest.approx(1 / (1 + 1 / math.log2(3)))
    # A ranking stage put the last one first.
    precision, _ = ranking_quality(angles(0), items, ["a"], ["a", "b", "a", "b", "a"], first=torch.tensor([[4, 0]]))
    assert precision.item() == pytest.approx((1 + 1) / 3)
    # All items tie: nothing is found before the items of others.
    precision, gain = ranking_quality(angles(0), angles(20, 20, 20), ["a"], ["a", "b", "c"], k=1)
    assert precision.item() == gain.item() == 0
    # The query of a product that is not there is left open, and the order of the queries stays.
    precision, gain = ranking_quality(angles(50, 0, 10), items, ["b", "x", "a"], ["a", "b", "a", "b", "a"])
    assert precision.isnan().tolist() == gain.isnan().tolist() == [False, True, False]
    assert precision[2] == pytest.approx((1 + 2 / 3) / 3) and precision[0] == pytest.approx(1 / 4)


@pytest.mark.parametrize(("gallery", "relevant", "k"), [(5, 2, 2), (6, 1, 3), (6, 3, 1), (5, 4, 3), (4, 2, 9)])
def test_chance_recall_is_the_share_of_all_orders_that_hit(gallery, relevant, k):
    hits = [min(order[:relevant]) < k for order in permutations(range(gallery))]
    assert chance_recall(torch.tensor([relevant]), gallery, k) == pytest.approx(100 * np.mean(hits))


def test_chance_is_what_random_embeddings_reach():
    generator = torch.Generator().manual_seed(0)
    runs = []
    for _ in range(20):
        images, texts = torch.randn(100, 64, generator=generator), torch.randn(300, 64, generator=generator)
        runs.append(retrieval_metrics(images, texts, range(100), [index // 3 for index in range(300)]))
    assert np.mean([run["rsum"] for run in runs]) == pytest.approx(runs[0]["chance_rsum"], rel=0.1)
    # 3 of 300 texts, 1 of 100 images are relevant; at 1 both are one in a hundred.
    expected = sum(1 - math.comb(297, k) / math.comb(300, k) + k / 100 for k in (1, 5, 10))
    assert runs[0]["chance_rsum"] == pytest.approx(100 * expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_type_of_embedding_is_read(dtype):
    embeds = torch.eye(4, dtype=dtype, requires_grad=True)
    assert retrieval_metrics(embeds, 3 * embeds, "abcd", "abcd", ks=[1])["i2t_recall@1"] == 100
    scaled = torch.eye(4, dtype=torch.float64) * 1e-200
    assert retrieval_metrics(scaled, scaled, "abcd", "abcd", ks=[1])["t2i_mrr"] == 1


@pytest.mark.parametrize("products", [np.arange(4), torch.arange(4), (0, 1, 2, 3)])
def test_products_may_be_arrays_and_tensors(products):
    assert retrieval_metrics(np.eye(4), np.eye(4), [0, 1, 2, 3], products, ks=[1])["t2i_recall@1"] == 100


def test_bad_values_are_named_with_their_side_number_and_place():
    bad = torch.eye(5)
    bad[2, 0], bad[4, 1] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"`text_embeds`: 2 of 5 rows hold NaN or infinity, the first at index 2"):
        retrieval_metrics(torch.eye(5), bad, range(5), range(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_embeds": torch.ones(3)}, r"`image_embeds` .* shape \(items, dimensions\).*\(3,\)"),
        ({"text_embeds": torch.ones(0, 2)}, r"`text_embeds` .* shape \(0, 2\)"),
        ({"text_embeds": torch.ones(3, 4)}, r"`image_embeds` has 2 dimensions and `text_embeds` 4"),
        ({"text_products": ["a", "b"]}, r"`text_embeds` has 3 rows but 2 products"),
        ({"text_products": ["a", None, "c"]}, r"1 of the 3 products given for `text_embeds` are missing.*index 1"),
        ({"image_products": [math.nan, "b", math.nan]}, r"2 of the 3 products .*`image_embeds` are missing.*index 0"),
        ({"image_products": [["a"], ["b"], ["c"]]}, r"`image_embeds` must be strings or whole numbers"),
        ({"text_products": ["1", "2", "3"], "image_products": [1, 2, 3]}, r"first image's product is 1, .*'1'"),
        ({"ks": ()}, r"`ks` is empty"),
        ({"ks": (0, 5)}, r"`ks` must be a whole number from 1, got 0"),
        ({"ks": (2.5,)}, r"`ks` must be a whole number from 1, got 2.5"),
        ({"chunk_size": 0}, r"`chunk_size` must be a whole number from 1, got 0"),
    ],
)
def test_bad_input_is_refused_with_words(change, message):
    good = {
        "image_embeds": torch.ones(3, 2),
        "text_embeds": torch.ones(3, 2),
        "image_products": ["a", "b", "c"],
        "text_products": ["a", "b", "c"],
    }
    retrieval_metrics(**good)
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**(good | change))
