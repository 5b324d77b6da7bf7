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
import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from safetensors import SafetensorError

from fusionmatch import FusionMatchModel
from fusionmatch.evaluation.retrieval import embed_catalogue, unique_texts
from fusionmatch.training import TowerFeatureCache, checkpoints, features, lora_config

from ..core.tiny import perturb
from .test_trainer import make_trainer


def caches(model, processor, dataset, folder):
    texts, _ = unique_texts(dataset)
    return {
        "vision_features": TowerFeatureCache.for_images(model, processor, dataset, folder),
        "text_features": TowerFeatureCache.for_texts(model, processor, texts, folder),
    }


def test_cached_features_give_the_same_embeddings(model, processor, splits, tmp_path):
    perturb(model)
    direct = embed_catalogue(model, processor, splits["test"], disable_tqdm=True)
    cached = embed_catalogue(
        model, processor, splits["test"], disable_tqdm=True, **caches(model, processor, splits["test"], tmp_path)
    )
    # Level tokens are kept in half precision.
    torch.testing.assert_close(cached.image_embeds, direct.image_embeds, atol=1e-3, rtol=0)
    torch.testing.assert_close(cached.text_embeds, direct.text_embeds, atol=1e-3, rtol=0)


def test_lora_in_the_text_tower_alone_learns_the_same_from_cached_pictures(model, processor, splits, tmp_path):
    """Level tokens are kept in half precision, so the same to three digits."""
    model.save_pretrained(tmp_path / "base")
    losses = []
    for cached in (True, False):
        base = FusionMatchModel.from_pretrained(tmp_path / "base")
        trainer = make_trainer(
            base,
            splits,
            processor,
            tmp_path / f"{cached}",
            peft_config=lora_config(base, towers=("text",), r=2),
            cache_tower_features=cached,
            image_views=1,
            max_steps=6,
            logging_steps=1,
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        names = {name.split(".")[0] for name, p in trainer._core.named_parameters() if p.requires_grad}
        assert "text_model" in names and "vision_model" not in names
        assert any((tmp_path / f"{cached}").glob("feature_cache/*")) == cached
    assert losses[0] == pytest.approx(losses[1], abs=2e-3) and losses[0][0] != losses[0][-1]


def test_without_fusion_the_cache_is_exact(processor, splits, tmp_path):
    from ..core.tiny import tiny_model

    model = tiny_model(vision_feature_levels=[], text_feature_levels=[])
    direct = embed_catalogue(model, processor, splits["test"], disable_tqdm=True)
    cached = embed_catalogue(
        model, processor, splits["test"], disable_tqdm=True, **caches(model, processor, splits["test"], tmp_path)
    )
    torch.testing.assert_close(cached.image_embeds, direct.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(cached.text_embeds, direct.text_embeds, atol=1e-6, rtol=0)


def test_the_key_changes_with_weights_settings_and_data(model, processor, splits, tmp_path):
    dataset, folder = splits["test"], tmp_path
    first = TowerFeatureCache.for_images(model, processor, dataset, folder).folder
    assert TowerFeatureCache.for_images(model, processor, dataset, folder).folder == first
    others = {first, TowerFeatureCache.for_images(model, processor, dataset.select(range(3)), folder).folder}
    processor.image_processor.image_mean = [0.1, 0.1, 0.1]
    others.add(TowerFeatureCache.for_images(model, processor, dataset, folder).folder)
    perturb(model)
    others.add(TowerFeatureCache.for_images(model, processor, dataset, folder).folder)
    assert len(others) == 4


def test_what_was_tokenized_before_keeps_the_key(model, processor, tmp_path):
    first = TowerFeatureCache.for_texts(model, processor, ["a red mug"], tmp_path).folder
    processor.tokenizer(["a", "a b"], padding="max_length", max_length=9, truncation=True)
    assert TowerFeatureCache.for_texts(model, processor, ["a red mug"], tmp_path).folder == first


def test_lists_of_the_same_texts_share_what_is_there(model, processor, tmp_path, monkeypatch):
    texts = ["a red mug", "a", "a blue lamp of this", "a red mug"]
    first = TowerFeatureCache.for_texts(model, processor, texts, tmp_path)
    monkeypatch.setattr(model, "encode_tower", None)
    other = TowerFeatureCache.for_texts(model, processor, [texts[2], texts[0], texts[1]], tmp_path)
    assert other.folder == first.folder and (first.rows, other.rows) == (4, 3)
    a, b = first([2, 0, 1, 3]), other([0, 1, 2, 1])
    assert torch.equal(a.pooled, b.pooled)
    assert torch.equal(a.levels[0], b.levels[0])
    with pytest.raises(IndexError, match="3 rows, got index 3"):
        other([3])


def test_a_change_of_heads_keeps_the_key(model, processor, splits, tmp_path):
    first = TowerFeatureCache.for_images(model, processor, splits["test"], tmp_path).folder
    perturb(model.vision_head)
    perturb(model.vision_fusion)
    assert TowerFeatureCache.for_images(model, processor, splits["test"], tmp_path).folder == first


def test_models_that_read_other_levels_share_what_is_there(model, processor, splits, tmp_path, monkeypatch):
    dataset = splits["test"]
    both = TowerFeatureCache.for_images(model, processor, dataset, tmp_path)
    assert len(model.config.vision_feature_levels) == 2
    monkeypatch.setattr(model.config, "vision_feature_levels", [-1])
    monkeypatch.setattr(model, "encode_tower", None)
    last = TowerFeatureCache.for_images(model, processor, dataset, tmp_path)
    assert last.folder == both.folder
    assert torch.equal(last([0]).levels[0], both([0]).levels[1])


def test_a_cut_off_computation_goes_on(model, processor, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD_ROWS", 4)
    dataset = splits["test"].select(range(10))
    whole = TowerFeatureCache.for_images(model, processor, dataset, tmp_path / "whole")
    cut = TowerFeatureCache.for_images(model, processor, dataset, tmp_path / "cut").folder
    (cut / "00001.-1.safetensors").unlink()
    (cut / "00002.pooled.partial").write_bytes(b"half")

    encoded = []
    encode_tower = model.encode_tower
    monkeypatch.setattr(model, "encode_tower", lambda **inputs: encoded.append(1) or encode_tower(**inputs))
    again = TowerFeatureCache.for_images(model, processor, dataset, tmp_path / "cut")
    assert len(encoded) == 1
    for i in range(10):
        torch.testing.assert_close(again([i]).pooled, whole([i]).pooled, atol=0, rtol=0)


def test_two_that_compute_the_same_do_not_disturb_each_other(model, processor, tmp_path, monkeypatch):
    both, save_file = Barrier(2, timeout=60), features.save_file

    def at_once(tensors, path):
        both.wait()
        save_file(tensors, path)
        both.wait()

    monkeypatch.setattr(features, "save_file", at_once)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(TowerFeatureCache.for_texts, model, processor, ["a red mug"], tmp_path) for _ in range(2)]
        one, other = (job.result()([0]) for job in jobs)
    assert torch.equal(one.pooled, other.pooled)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_disk_that_fills_up_is_said_in_words(model, processor, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(features, "save_file", full)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(OSError, match=r"is full \(1 MiB left\), and the cache of tower features is not whole"):
        TowerFeatureCache.for_texts(model, processor, ["a red mug"], tmp_path)


def test_an_index_outside_is_an_error(model, processor, splits, tmp_path):
    cache = TowerFeatureCache.for_images(model, processor, splits["test"], tmp_path)
    with pytest.raises(IndexError, match="rows"):
        cache([len(cache)])
