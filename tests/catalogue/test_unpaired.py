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
"""Pictures and texts that nobody has matched yet."""

import datasets
import pytest

from fusionmatch.catalogue import add_unpaired_images, hide_pairs, load_catalogue, read_unpaired_texts
from fusionmatch.catalogue.sample_shop import write_sample_shop


@pytest.fixture
def rows(draw):
    content = {
        "image": [str(draw(f"{i}.png", i)) for i in range(8)],
        "texts": [[f"text {i}", "shared"] for i in range(8)],
        "product": [f"P{i // 2}" for i in range(8)],
        "image_id": [f"{i}.png" for i in range(8)],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "texts": datasets.List(datasets.Value("string")),
            "product": datasets.Value("string"),
            "image_id": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(content, features=features)


def test_a_smaller_number_keeps_some_of_a_larger_one_and_no_text_is_lost(rows):
    kept = {}
    for labels in (3, 5, 8):
        apart, texts = hide_pairs(rows, labels, seed=1)
        assert list(apart["image_id"]) == list(rows["image_id"]) and apart.features == rows.features
        kept[labels] = {i for i, own in enumerate(apart["texts"]) if own}
        assert len(kept[labels]) == labels
        assert set(texts["text"]) == {t for i in set(range(8)) - kept[labels] for t in (f"text {i}", "shared")}
        owners = dict(zip(texts["text"], texts["products"], strict=True))
        assert all(owners[f"text {i}"] == [f"P{i // 2}"] for i in set(range(8)) - kept[labels])
    assert kept[3] < kept[5] < kept[8]
    assert hide_pairs(rows, 3, seed=2)[0]["texts"] != hide_pairs(rows, 3, seed=1)[0]["texts"]


@pytest.mark.parametrize("labels", [0, 1, 9])
def test_a_number_of_labels_that_cannot_be(rows, labels):
    with pytest.raises(ValueError, match=f"between 2 and the 8 training pictures, got {labels}"):
        hide_pairs(rows, labels)


def test_labels_of_one_product_are_refused(rows):
    with pytest.raises(ValueError, match="are of one product; raise `labels`"):
        hide_pairs(rows.select([0, 1]), 2)


def test_a_folder_adds_each_picture_once_and_names_what_is_broken(rows, draw, tmp_path, caplog):
    draw("new/a.png", 100)
    draw("new/deeper/b.png", 101)
    draw("new/copy-of-a.png", 100)
    (tmp_path / "new/broken.jpg").write_bytes(b"no picture")
    (tmp_path / "new/notes.txt").write_text("no picture either")
    more = add_unpaired_images(rows, tmp_path / "new")
    assert len(more) == 10 and more.features == rows.features
    assert more["texts"][8:] == [[], []] and len(set(more["product"])) == 6
    assert more[9]["image"].size == (8, 6)
    assert "1 of 4 unpaired pictures cannot be used (broken.jpg" in caplog.text


def test_copies_of_what_the_catalogue_has_are_known(rows, draw, tmp_path, caplog):
    grouped = rows.add_column("picture_group", [f"group {i}" for i in range(8)])
    draw("new/of-train.png", 2)
    draw("new/of-test.bmp", 7)  # other bytes, the same picture
    draw("new/own.png", 100)
    more = add_unpaired_images(grouped.select(range(6)), tmp_path / "new", [grouped.select([6, 7])])
    assert more["picture_group"][6] == "group 2" and len(set(more["picture_group"])) == 7
    assert [row["image_id"].rsplit("/")[-1] for row in more.select([6, 7])] == ["of-train.png", "own.png"]
    assert "1 unpaired pictures are copies of pictures that are held out" in caplog.text


def test_a_folder_without_pictures(rows, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture that can be used"):
        add_unpaired_images(rows, tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        add_unpaired_images(rows, tmp_path / "nowhere")


def test_a_catalogue_that_was_read_takes_a_folder(draw, tmp_path):
    draw("new/a.png", 100)
    train = load_catalogue(write_sample_shop(tmp_path / "shop", num_products=40, image_size=32))["train"]
    assert len(add_unpaired_images(train, tmp_path / "new")) == len(train) + 1


def test_texts_of_a_file(tmp_path, caplog):
    path = tmp_path / "texts.txt"
    path.write_text("\ufeffa red shoe\n\n a blue hat \nA red shoe!\n", encoding="utf-8")
    texts = read_unpaired_texts(path)
    assert len(texts["text"]) == 2 and "a blue hat" in list(texts["text"])
    held_out = [datasets.Dataset.from_dict({"texts": [["other"], ["A RED shoe", "more"]]})]
    assert list(read_unpaired_texts(path, held_out)["text"]) == ["a blue hat"]
    assert "1 unpaired texts are held out" in caplog.text
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no text"):
        read_unpaired_texts(path)
    path.write_bytes("赤い靴".encode("shift_jis"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_unpaired_texts(path)
    with pytest.raises(FileNotFoundError):
        read_unpaired_texts(tmp_path / "none.txt")
