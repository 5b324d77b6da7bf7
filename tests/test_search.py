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
import datasets
import pytest
from PIL import Image

from fusionmatch import CatalogueIndex
from fusionmatch.evaluation.retrieval import embed_texts

from .core.tiny import perturb, tiny_model, tiny_pictures, tiny_processor


@pytest.fixture(scope="module")
def catalogue():
    pictures = tiny_pictures(12)
    return datasets.Dataset.from_dict(
        {
            "image": pictures,
            "texts": [[f"mug {i}"] for i in range(12)],
            "product": [f"p{i // 3}" for i in range(12)],  # three pictures a product
            "image_id": [f"picture-{i}" for i in range(12)],
        }
    ).cast_column("image", datasets.Image())


@pytest.fixture(scope="module")
def index(catalogue):
    return CatalogueIndex.build(tiny_model(), tiny_processor(), catalogue, disable_tqdm=True)


def test_each_product_comes_once_by_its_nearest_picture(index):
    hits = index.search("a red mug", top_k=10)
    scores = index.embeds @ embed_texts(index.model, index.processor, ["a red mug"], disable_tqdm=True)[0]
    best = scores.view(4, 3).max(dim=1)
    assert [hit.product for hit in hits] == [f"p{i}" for i in best.values.argsort(descending=True)]
    for hit in hits:
        product = int(hit.product[1:])
        assert hit.score == pytest.approx(best.values[product].item(), abs=1e-6)
        assert hit.row == 3 * product + best.indices[product].item()
        assert hit.image_id == f"picture-{hit.row}"
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]


def test_a_picture_of_the_catalogue_finds_itself(index, catalogue):
    hit = index.search(catalogue[7]["image"], top_k=1)[0]
    assert (hit.product, hit.row) == ("p2", 7)
    assert hit.score == pytest.approx(1, abs=1e-5)


def test_queries_of_any_mode(index):
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert len(index.search(Image.new(mode, (5, 9)), top_k=2)) == 2


def test_saved_and_loaded(index, tmp_path):
    index.save_pretrained(tmp_path)
    loaded = CatalogueIndex.from_pretrained(tmp_path, index.model, index.processor)
    assert loaded.search("a blue lamp") == index.search("a blue lamp")
    other = tiny_model()
    perturb(other)
    with pytest.raises(ValueError, match="build the index anew"):
        CatalogueIndex.from_pretrained(tmp_path, other, index.processor)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        CatalogueIndex.from_pretrained(tmp_path / "nowhere", index.model, index.processor)


def test_bad_queries(index):
    with pytest.raises(ValueError, match="empty text"):
        index.search("  ")
    with pytest.raises(ValueError, match="`top_k` must be at least 1"):
        index.search("mug", top_k=0)


def test_searching_leaves_the_model_in_its_mode(index):
    index.model.train()
    index.search("mug")
    assert index.model.training
    index.model.eval()
