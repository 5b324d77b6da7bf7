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
"""Adapters: what they train, what their folder holds, and every way to load one."""

import subprocess
import sys

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from fusionmatch import FusionMatchConfig, FusionMatchModel
from fusionmatch.evaluation.retrieval import embed_catalogue
from fusionmatch.loading import load_pretrained
from fusionmatch.training import describe_trainable, embed_mixed_batch, lora_config
from fusionmatch.training.pipeline import fit

from ..core.tiny import VISION_TOWERS, perturb, tiny_config, tiny_inputs, tiny_model, tiny_processor, tower_config
from .test_trainer import arguments, make_trainer


def test_adapter_on_a_fresh_head_carries_it_whole(splits, processor, tmp_path):
    base = tiny_model(gate_init_value=0.0)
    base.config.untrained_modules = ["vision_head", "text_head", "vision_fusion", "text_fusion", "similarity"]
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model, processor = load_pretrained(tmp_path / "base")
    config = lora_config(model)
    assert set(config.modules_to_save) == set(base.config.untrained_modules)
    result = fit(model, processor, splits, arguments(tmp_path / "adapter", num_train_epochs=3), config)
    assert result.after["rsum"] != result.before["rsum"]
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("vision_head" in name for name in weights)
    assert not any(name.endswith("query.weight") for name in weights)

    loaded, _ = load_pretrained(tmp_path / "adapter")
    rows = splits["test"]
    again = embed_catalogue(loaded, processor, rows, disable_tqdm=True)
    torch.testing.assert_close(again.image_embeds, result.after_embeddings.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.text_embeds, result.after_embeddings.text_embeds, atol=1e-5, rtol=0)

    # The base was changed behind the adapter's back.
    other, _ = load_pretrained(tmp_path / "base")
    perturb(other)
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="was made on a base with the fingerprint"):
        load_pretrained(tmp_path / "adapter")


def adapted(fresh, splits, folder, **settings):
    """Trains an adapter in a folder, on a base beside it; `settings` are those of LoRA."""
    base, processor = tiny_model(gate_init_value=0.0), tiny_processor()
    if fresh:
        base.config.untrained_modules = ["vision_head", "text_head", "vision_fusion", "text_fusion", "similarity"]
    base.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    model, processor = load_pretrained(folder / "base")
    config = lora_config(model, **settings)
    result = fit(model, processor, splits, arguments(folder / "adapter", num_train_epochs=1), config)
    return result.trainer.model.eval()


@pytest.mark.parametrize(("fresh", "dora"), [(True, False), (False, False), (False, True)])
def test_an_adapter_is_a_plain_peft_folder(fresh, dora, splits, tmp_path):
    """Switched off or taken away it is the base, and merged it is what it was."""
    model, inputs, base = adapted(fresh, splits, tmp_path, use_dora=dora), tiny_inputs(), tmp_path / "base"
    with torch.no_grad():
        expected = model(**inputs).image_embeds
        untouched = FusionMatchModel.from_pretrained(base)
        before = untouched(**inputs).image_embeds
        assert (expected - before).abs().max() > 1e-3
        by_peft = PeftModel.from_pretrained(untouched, tmp_path / "adapter").eval()
        torch.testing.assert_close(by_peft(**inputs).image_embeds, expected, atol=1e-6, rtol=0)
        with by_peft.disable_adapter():
            torch.testing.assert_close(by_peft(**inputs).image_embeds, before, atol=1e-6, rtol=0)
        merged = by_peft.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).image_embeds, expected, atol=1e-5, rtol=0)
    kept = FusionMatchModel.from_pretrained(base).state_dict()
    # PEFT takes LoRA away and leaves what the adapter carries whole; without the adapter all is the base again.
    for removed, others in ((False, set(model.peft_config["default"].modules_to_save)), (True, set())):
        loaded = PeftModel.from_pretrained(FusionMatchModel.from_pretrained(base), tmp_path / "adapter")
        if removed:
            loaded.delete_adapter("default")
        bare = loaded.unload()
        assert type(bare) is FusionMatchModel and list(bare.state_dict()) == list(kept)
        changed = [name for name, tensor in bare.state_dict().items() if not torch.equal(kept[name], tensor)]
        assert {name.split(".")[0] for name in changed} == others


LOAD = """if True:
    import sys
    from pathlib import Path
    import fusionmatch, torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel
    torch.set_grad_enabled(False)
    for folder in map(Path, sys.argv[1:]):
        inputs = load_file(folder / "inputs.safetensors")
        expected = load_file(folder / "expected.safetensors")
        by_name = AutoModel.from_pretrained(folder / "base")
        by_name.load_adapter(folder / "adapter")
        for loaded in (
            PeftModel.from_pretrained(AutoModel.from_pretrained(folder / "base"), folder / "adapter"),
            by_name,
            AutoModel.from_pretrained(folder / "adapter"),
        ):
            outputs = loaded.eval()(**inputs)
            for name in expected:
                torch.testing.assert_close(outputs[name], expected[name], atol=1e-6, rtol=0)
"""


def test_an_adapter_is_the_same_by_three_routes_in_a_fresh_process(splits, tmp_path):
    """Whatever way an engineer of the ecosystem takes, the outputs are those of the model that was trained."""
    folders, inputs = [tmp_path / name for name in ("fresh", "trained", "dora", "heads")], tiny_inputs()
    for folder in folders:
        settings = {"dora": {"use_dora": True}, "heads": {"towers": ()}}.get(folder.name, {})
        model = adapted(folder.name == "fresh", splits, folder, **settings)
        with torch.no_grad():
            outputs = model(**inputs)
        save_file(inputs, folder / "inputs.safetensors")
        save_file({name: outputs[name] for name in ("image_embeds", "text_embeds")}, folder / "expected.safetensors")
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize(
    "settings", [{"vision_feature_levels": [], "text_feature_levels": []}, {"gate_init_value": 0.5}], ids=str
)
def test_an_adapter_knows_the_settings_that_it_was_made_with(settings, splits, processor, tmp_path):
    """Without them its base would be built as it is on disk, with other parts or another start."""
    base = tiny_model(gate_init_value=0.0)
    base.config.untrained_modules = ["vision_head", "text_head", "vision_fusion", "text_fusion", "similarity"]
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model, processor = load_pretrained(tmp_path / "base", **settings)
    result = fit(model, processor, splits, arguments(tmp_path / "adapter", num_train_epochs=1), lora_config(model))
    loaded, _ = load_pretrained(tmp_path / "adapter")
    again = embed_catalogue(loaded, processor, splits["test"], disable_tqdm=True)
    torch.testing.assert_close(again.image_embeds, result.after_embeddings.image_embeds, atol=1e-5, rtol=0)


def test_adapter_on_a_trained_head_is_low_rank_there_too(tmp_path):
    model = tiny_model()
    config = lora_config(model)
    assert config.modules_to_save == ["similarity"]
    wrapped = peft.get_peft_model(model, config)
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert any("vision_fusion" in name and "lora_A" in name for name in trained)
    assert any("text_head" in name and "lora_B" in name for name in trained)
    assert any("similarity" in name for name in trained)
    assert not any(name.endswith("fc1.base_layer.weight") for name in trained)
    name, trainable, total = describe_trainable(wrapped)[-1]
    assert name == "all"
    assert trainable == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert 0 < trainable < total


@pytest.mark.parametrize("vision", sorted(VISION_TOWERS))
@pytest.mark.parametrize("text", ["bert", "distilbert", "xlm-roberta", "clip_text_model", "siglip_text_model"])
def test_a_preset_for_every_tower_family(vision, text):
    wrapped = peft.get_peft_model(tiny_model(vision, text), lora_config(tiny_model(vision, text)))
    adapted = {name.split(".")[2] for name, _ in wrapped.named_modules() if name.endswith("lora_A.default")}
    assert {"vision_model", "text_model"} <= adapted


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_a_preset_for_dino(family):
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = AutoConfig.for_model(family, image_size=32, patch_size=8, **sizes)
    model = FusionMatchModel(FusionMatchConfig(**(tiny_config().to_dict() | {"vision_config": tower.to_dict()})))
    wrapped = peft.get_peft_model(model, lora_config(model, towers=("vision",)))
    found = [name for name, _ in wrapped.named_modules() if name.endswith("lora_A.default")]
    # Four projections of the attention and two layers of the MLP, in each of two blocks.
    assert sum("vision_model" in name for name in found) == 12


@pytest.mark.parametrize(("blocks", "first"), [(16, 5), (4, 1), (2, 0)])
def test_the_starters_tower_gets_lora_in_its_last_two_thirds_alone(blocks, first):
    """The gradient need not go through the early blocks; 16 are those of EfficientNet-Lite0."""
    stages = {
        "in_channels": [32] + [16] * (blocks - 1),
        "out_channels": [16] * blocks,
        "kernel_sizes": [3] * blocks,
        "strides": [1] * blocks,
        "num_block_repeats": [1] * blocks,
        "expand_ratios": [6] * blocks,
    }
    tower = tower_config("efficientnet", **stages)
    model = FusionMatchModel(FusionMatchConfig(**(tiny_config().to_dict() | {"vision_config": tower.to_dict()})))
    assert len(model.vision_model.encoder.blocks) == blocks
    wrapped = peft.get_peft_model(model, lora_config(model, towers=("vision",)))
    found = [name for name, _ in wrapped.named_modules() if name.endswith("lora_A.default")]
    found = {name.removeprefix("base_model.model.vision_model.encoder.") for name in found if "vision_model" in name}
    layers = ("expansion.expand_conv", "projection.project_conv")
    wanted = {f"blocks.{block}.{layer}.lora_A.default" for block in range(first, blocks) for layer in layers}
    assert found == wanted | {"top_conv.lora_A.default"}


def test_an_unknown_tower_family_names_the_remedy():
    model = tiny_model("resnet")
    model.config.vision_config.model_type = "novel"
    with pytest.raises(ValueError, match="target_modules"):
        lora_config(model)


@pytest.mark.parametrize("named", [["key", "self.value"], r"text_model\..*\.(key|self\.value)"])
def test_named_modules_of_towers_get_lora_beside_the_heads(named):
    model = tiny_model()
    model.config.untrained_modules = ["vision_fusion"]
    wrapped = peft.get_peft_model(model, lora_config(model, target_modules=named, towers=("text",)))
    found = [name.removeprefix("base_model.model.") for name, _ in wrapped.named_modules() if name.endswith(".lora_A")]
    own = {name.removesuffix(".lora_A") for name in found if "text_model" in name}
    assert own and all(name.endswith((".key", ".value")) for name in own)
    assert not any("vision_model" in name for name in found)
    heads = {name.split(".")[0] for name in found} - {"text_model"}
    usual = peft.get_peft_model(tiny_model(), lora_config(tiny_model(), towers=())).named_modules()
    assert heads == {name.split(".")[2] for name, _ in usual if name.endswith(".lora_A")} - {"vision_fusion"}
    for towers in (("vision",), ()):
        with pytest.raises(ValueError, match=r"None of the modules .* is in a tower that gets LoRA"):
            lora_config(model, target_modules=["ffn.lin1"], towers=towers)


def test_an_adapter_needs_a_base_that_was_saved(model, splits, processor, tmp_path):
    with pytest.raises(ValueError, match="save_pretrained"):
        make_trainer(model, splits, processor, tmp_path, lora_config(model))


def test_a_family_with_other_names_is_no_silent_miss():
    model = tiny_model()
    model.config.vision_config.model_type = "resnet-novel"  # told by its name, but has no such convolutions
    with pytest.raises(ValueError, match="No LoRA preset for the vision tower"):
        lora_config(model)


def test_frozen_towers_and_a_fresh_head_make_an_adapter_of_whole_modules(splits, processor, tmp_path):
    base = tiny_model(gate_init_value=0.0)
    base.config.untrained_modules = ["vision_head", "text_head", "vision_fusion", "text_fusion", "similarity"]
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model, _ = load_pretrained(tmp_path / "base")
    config = lora_config(model, towers=())
    result = fit(model, processor, splits, arguments(tmp_path / "adapter", num_train_epochs=1), config)
    assert (tmp_path / "adapter" / "feature_cache").is_dir()
    adapter, _ = load_pretrained(tmp_path / "adapter")
    again = embed_catalogue(adapter, processor, splits["test"], disable_tqdm=True)
    torch.testing.assert_close(again.text_embeds, result.after_embeddings.text_embeds, atol=1e-3, rtol=0)
    # Merged, it does not count as fresh any more.
    assert adapter.merge_and_unload().config.untrained_modules == []


def test_an_adapter_of_a_base_named_from_here_finds_it_from_elsewhere(splits, processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("base")
    processor.save_pretrained("base")
    model, _ = load_pretrained("base")
    make_trainer(model, splits, processor, "adapter", peft_config=lora_config(model)).save_model()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded, _ = load_pretrained(tmp_path / "adapter")
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")


@pytest.mark.parametrize("fresh", [True, False])
def test_a_batch_of_several_adapters(fresh):
    base = tiny_model().double()  # rows that are summed in another order differ by far less than 1e-6 then
    if fresh:
        base.config.untrained_modules = ["vision_head", "text_head", "vision_fusion", "text_fusion", "similarity"]
    config = lora_config(base, r=2, init_lora_weights=False)
    model = get_peft_model(base, config, adapter_name="one")
    model.add_adapter("two", lora_config(base, r=2, init_lora_weights=False))
    perturb(model)
    model.train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in tiny_inputs(7).items()}
    names = ["two", "__base__", "one", "two", "one", "one", "__base__"]
    found = embed_mixed_batch(model, names, **inputs)
    assert model.training and model.active_adapter == "one"
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.eval()
    with torch.no_grad():
        alone = {}
        for name in ("one", "two"):
            model.set_adapter(name)
            alone[name] = model(**inputs)
        with model.disable_adapter():
            alone["__base__"] = model(**inputs)
    for field in ("image_embeds", "text_embeds"):
        expected = torch.stack([alone[name][field][row] for row, name in enumerate(names)])
        torch.testing.assert_close(found[field], expected, atol=1e-6, rtol=0)
        assert (alone["one"][field] - alone["two"][field]).abs().max() > 1e-3
    pictures = embed_mixed_batch(model, names, pixel_values=inputs["pixel_values"])
    assert torch.equal(pictures.image_embeds, found.image_embeds) and pictures.text_embeds is None
    with pytest.raises(ValueError, match="one, two, __base__; got three"):
        embed_mixed_batch(model, ["three"] * 7, **inputs)
    with pytest.raises(ValueError, match=r"has 2 rows, the inputs have .*'pixel_values': 7"):
        embed_mixed_batch(model, names[:2], **inputs)
