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
"""Folders that are not loaded, and not pushed either: each says what is wrong with it."""

import json
import pickle
import shutil

import pytest
import torch
from peft import get_peft_model

from fusionmatch.hub import UnsafeFolderError, choose_files
from fusionmatch.loading import fingerprint, load_pretrained, write_fingerprint
from fusionmatch.training import lora_config

from .core.tiny import tiny_model, tiny_processor


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_model().save_pretrained(folder / "base")
    tiny_processor().save_pretrained(folder / "base")
    model, processor = load_pretrained(folder / "base")
    get_peft_model(model, lora_config(model)).save_pretrained(folder / "adapter")
    processor.save_pretrained(folder / "adapter")
    write_fingerprint(folder / "adapter", "acme/base", "0", "torch.float32")
    return folder


@pytest.fixture
def base(models, tmp_path):
    return shutil.copytree(models / "base", tmp_path / "base")


@pytest.fixture
def adapter(models, tmp_path):
    return shutil.copytree(models / "adapter", tmp_path / "adapter")


def refused(folder, *words):
    """By the loader and by a push alike, in one line."""
    for read in (load_pretrained, choose_files):
        with pytest.raises(UnsafeFolderError) as error:
            read(folder)
        message = str(error.value)
        assert "\n" not in message
        assert str(folder) in message
        for word in words:
            assert word in message, message


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_whole_folders_are_taken(base, adapter):
    for folder in (base, adapter):
        files, left_out = choose_files(folder)
        assert files.keys() | left_out.keys() == {path.name for path in folder.iterdir()}
        assert left_out.keys() <= {"README.md"}


@pytest.mark.parametrize(
    ("kind", "weights", "pickled"),
    [
        ("base", "model.safetensors", "pytorch_model.bin"),
        ("adapter", "adapter_model.safetensors", "adapter_model.bin"),
    ],
)
def test_pickled_weights(kind, weights, pickled, models, tmp_path):
    folder = shutil.copytree(models / kind, tmp_path / kind)
    (folder / weights).unlink()
    (folder / pickled).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(folder, "pickled", pickled, "any code", "safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pickle_under_another_name(name, base, tmp_path):
    torch.save({"weight": torch.ones(2)}, base / name)
    with pytest.raises(UnsafeFolderError, match=name.replace(".", r"\.")):
        choose_files(base)
    with pytest.raises((UnsafeFolderError, OSError)):
        load_pretrained(base)


def test_a_pickle_that_nothing_reads_stays_at_home(base):
    torch.save({"step": 3}, base / "optimizer.pt")
    (base / "training_args.bin").write_bytes(b"\x80\x04")
    (base / ".cache").mkdir()
    load_pretrained(base)
    files, left_out = choose_files(base)
    assert "optimizer.pt" not in files and "training_args.bin" not in files
    assert {"optimizer.pt", "training_args.bin", ".cache"} <= left_out.keys()


@pytest.mark.parametrize("broken", ["cut", "header", "empty"])
@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_weights_that_are_not_whole(broken, kind, models, tmp_path):
    folder = shutil.copytree(models / kind, tmp_path / kind)
    (path,) = folder.glob("*model.safetensors")
    content = path.read_bytes()
    size = (2**62).to_bytes(8, "little")
    path.write_bytes({"cut": content[:-1], "header": size + content[8:], "empty": b""}[broken])
    refused(folder, path.name, "no whole safetensors file")


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "/etc/passwd", "sub/model-1.safetensors", "..\\x.safetensors", "model.bin"]
)
def test_an_index_that_reaches_elsewhere(place, base):
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    shutil.copy(base / "model-00001-of-00001.safetensors", base.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"similarity.logit_scale": place}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(base, "model.safetensors.index.json", repr(place))


def test_a_shard_is_missing(base):
    load_pretrained(base)[0].save_pretrained(base, max_shard_size="80KB")
    shard = sorted(base.glob("model-*.safetensors"))[1]
    shard.unlink()
    (base / "model.safetensors").unlink(missing_ok=True)
    refused(base, shard.name, "missing")


@pytest.mark.parametrize(
    ("name", "entries", "words"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling_evil.Evil"}}, ["auto_map", "modeling_evil.Evil"]),
        (
            "config.json",
            {"auto_map": {"AutoModel": "evil/repo--modeling_fusionmatch.FusionMatchModel"}},
            ["evil/repo"],
        ),
        ("config.json", {"auto_map": "modeling_evil.Evil"}, ["auto_map", "modeling_evil.Evil"]),
        ("config.json", {"architectures": "EvilModel"}, ["architectures", "str", "list"]),
        ("config.json", {"model_type": ["fusionmatch"]}, ["model_type", "list", "str"]),
        ("config.json", {"architectures": ["EvilModel"]}, ["EvilModel", "FusionMatchModel"]),
        ("config.json", {"transformers_weights": "../model.safetensors"}, ["transformers_weights"]),
        ("config.json", {"_attn_implementation": "evil/kernels"}, ["evil/kernels"]),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "p.Evil"}}, ["p.Evil"]),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "p.Evil"}}}, ["auto_map"]),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["p.Evil", None]}}, ["p.Evil"]),
    ],
    ids=[
        *("code", "code elsewhere", "code as text", "class as text", "kind as list", "class", "weights", "kernels"),
        *("processor", "image processor", "tokenizer"),
    ],
)
def test_settings_that_name_other_code(name, entries, words, base):
    change(base / name, **entries)
    refused(base, name, *words)


def test_code_in_the_settings_of_a_tower(base):
    towers = json.loads((base / "config.json").read_text())["vision_config"]
    change(base / "config.json", vision_config=towers | {"auto_map": {"AutoModel": "modeling_evil.Evil"}})
    refused(base, "vision_config", "auto_map")


def test_an_adapter_that_names_another_module(adapter):
    mapping = {"base_model_class": "Popen", "parent_library": "subprocess"}
    change(adapter / "adapter_config.json", auto_mapping=mapping)
    refused(adapter, "subprocess")
    change(adapter / "adapter_config.json", auto_mapping=None, megatron_config={"a": 1}, megatron_core="antigravity")
    refused(adapter, "antigravity")


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("adapter_config.json", {"auto_mapping": "subprocess.Popen"}),
        ("adapter_config.json", {"base_model_name_or_path": ["acme/base"]}),
        ("fusionmatch_base.json", {"settings": ["trust_remote_code"]}),
        ("fusionmatch_base.json", {"dtype": None}),
    ],
)
def test_entries_of_an_adapter_that_are_of_another_kind(name, entries, adapter):
    change(adapter / name, **entries)
    refused(adapter, name, *entries, "has to be")


def test_settings_of_a_base_are_all_that_an_adapter_hands_on(adapter, models):
    base = fingerprint(load_pretrained(models / "base")[0])
    settings = {"max_logit_scale": 50.0, "device_map": "nowhere", "format_version": 99, "untrained_modules": ["x"]}
    change(adapter / "fusionmatch_base.json", fingerprint=base, settings=settings)
    model, _ = load_pretrained(adapter)
    assert model.config.max_logit_scale == 50.0
    assert (model.config.format_version, model.config.untrained_modules) == (1, [])


def test_a_base_that_is_an_adapter_itself(adapter):
    change(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(ValueError, match="is an adapter itself"):
        load_pretrained(adapter)


@pytest.mark.parametrize("left_over", ["index", "index and shards"])
def test_an_index_beside_weights_that_are_whole(left_over, base):
    load_pretrained(base)[0].save_pretrained(base.parent / "sharded", max_shard_size="80KB")
    shards = sorted((base.parent / "sharded").glob("model-*.safetensors"))
    left = [base.parent / "sharded" / "model.safetensors.index.json", *(shards[1:] if "shards" in left_over else ())]
    for path in left:
        shutil.copy(path, base)
    expected = fingerprint(load_pretrained(base)[0])
    files, left_out = choose_files(base)
    assert not {path.name for path in left} & files.keys()
    assert all("of no use" in left_out[path.name] for path in left)
    for path in left:
        (base / path.name).unlink()
    assert fingerprint(load_pretrained(base)[0]) == expected


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_settings_that_are_no_settings(content, base):
    (base / "config.json").write_text(content)
    refused(base, "config.json")


def test_own_code_beside_the_weights_is_no_reason(base):
    change(base / "config.json", auto_map={"AutoModel": "modeling_fusionmatch.FusionMatchModel"})
    assert type(load_pretrained(base)[0]).__name__ == "FusionMatchModel"


class TestPushAlone:
    @pytest.mark.parametrize("name", ["helper.py", "modeling_fusionmatch.py"])
    def test_python_files(self, name, base):
        (base / name).write_text("print(1)")
        load_pretrained(base)
        with pytest.raises(UnsafeFolderError, match=rf"holds code \({name}\)"):
            choose_files(base)

    def test_links_out_of_the_folder(self, base):
        secret = base.parent / "secret"
        secret.write_text("SECRET")
        (base / "README.md").symlink_to(secret)
        with pytest.raises(UnsafeFolderError, match="outside of the folder"):
            choose_files(base)

    def test_a_checkpoint_without_its_processor(self, base):
        (base / "processor_config.json").unlink()
        with pytest.raises(UnsafeFolderError, match=r"no `processor_config.json`.*save_pretrained"):
            choose_files(base)

    def test_an_adapter_that_does_not_know_its_base(self, adapter):
        (adapter / "fusionmatch_base.json").unlink()
        with pytest.raises(UnsafeFolderError, match=r"no `fusionmatch_base.json`"):
            choose_files(adapter)

    def test_the_report_goes_only_when_asked_for(self, base):
        (base / "report.html").write_text("<html>")
        files, left_out = choose_files(base)
        assert "report.html" not in files and "catalogue" in left_out["report.html"]
        assert "report.html" in choose_files(base, include_report=True)[0]
