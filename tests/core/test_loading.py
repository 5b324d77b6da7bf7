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
"""Saving and loading: every weight comes back, in another process too, and what cannot be loaded says why."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    DistilBertModel,
    ViTModel,
    set_seed,
)

import fusionmatch
from fusionmatch import FusionMatchConfig, FusionMatchModel, FusionMatchProcessor
from fusionmatch.evaluation.calibration import load_calibration
from fusionmatch.loading import fingerprint, load_pretrained
from fusionmatch.repository import SETTINGS_PATTERNS, UnsafeFolderError

from .tiny import perturb, save_base_and_adapter, tiny_inputs, tiny_model, tiny_processor, tower_config


ROOT = Path(__file__).parents[2]


def fresh_process(code: str, *arguments: object, path: str = str(ROOT), cwd: Path = ROOT, **environment: str) -> str:
    """Runs code in a new interpreter, warnings as errors; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders of small pretrained encoders."""
    folder = tmp_path_factory.mktemp("encoders")
    set_seed(0)
    clip_config = CLIPConfig(
        vision_config=tower_config("clip_vision_model").to_dict(),
        text_config=tower_config("clip_text_model").to_dict(),
        projection_dim=24,
    )
    models = {
        "clip": CLIPModel(clip_config),
        "vit": ViTModel(tower_config("vit")),
        "bert": BertModel(tower_config("bert")),
        "distilbert": DistilBertModel(tower_config("distilbert")),
    }
    for name, model in models.items():
        perturb(model)
        model.save_pretrained(folder / name)
    return folder


class TestRoundTrip:
    @pytest.mark.parametrize("mode", ["weighted_sum", "gated"])
    def test_fresh_process_gives_the_same(self, mode, tmp_path):
        model = tiny_model(fusion_mode=mode, logit_bias_init_value=-10.0)
        perturb(model)
        with torch.no_grad():
            model.vision_fusion.residual.gate.fill_(-0.37)
            model.text_fusion.level_embeddings.fill_(0.11)
            model.text_fusion.level_poolings[1].query.fill_(-0.23)
            model.similarity.logit_scale.fill_(1.7)
            model.similarity.logit_bias.fill_(0.9)
            if mode == "weighted_sum":
                model.vision_fusion.fusion.weight.copy_(torch.tensor([0.3, -1.1]))
        model.save_pretrained(tmp_path)
        inputs = tiny_inputs()
        with torch.no_grad():
            outputs = model(**inputs)
        expected = {name: outputs[name].contiguous() for name in ("image_embeds", "text_embeds", "logits_per_text")}
        save_file(inputs, tmp_path / "inputs.bin")
        save_file(expected, tmp_path / "expected.bin")
        save_file(dict(model.named_parameters()), tmp_path / "parameters.bin")
        code = """if True:
            import sys, torch
            from pathlib import Path
            from safetensors.torch import load_file
            import fusionmatch
            from transformers import AutoModel
            folder = Path(sys.argv[1])
            model = AutoModel.from_pretrained(folder)
            assert not model.training
            parameters = load_file(folder / "parameters.bin")
            found = dict(model.named_parameters())
            assert parameters.keys() == found.keys()
            for name in parameters:
                assert torch.equal(parameters[name], found[name]), name
            with torch.no_grad():
                outputs = model(**load_file(folder / "inputs.bin"))
            for name, expected in load_file(folder / "expected.bin").items():
                assert torch.equal(expected, outputs[name]), name
            print("equal")
        """
        assert fresh_process(code, tmp_path).split() == ["equal"]

    def test_missing_weights_are_initialised(self, tmp_path):
        model = tiny_model(fusion_mode="weighted_sum", logit_bias_init_value=-10.0)
        perturb(model)
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        bare = ("gate", "level_embeddings", "query", "fusion.weight", "logit_scale", "logit_bias")
        missing = [name for name in weights if name.endswith(bare) or name.startswith("vision_head.fc1")]
        assert len(missing) == 2 * (1 + 1 + 2 + 1) + 2 + 2
        save_file(
            {k: v for k, v in weights.items() if k not in missing}, tmp_path / "model.safetensors", {"format": "pt"}
        )
        loaded, info = FusionMatchModel.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == set(missing)
        for branch in (loaded.vision_fusion, loaded.text_fusion):
            assert branch.residual.gate.tolist() == pytest.approx([0.3])
            assert branch.fusion.weight.tolist() == [0, 0]
            for fresh in (branch.level_embeddings, *(pooling.query for pooling in branch.level_poolings)):
                assert 0.005 < fresh.std().item() < 0.05
                assert fresh.abs().max().item() < 0.12
        assert loaded.similarity.logit_scale.tolist() == pytest.approx([2.6592])
        assert loaded.similarity.logit_bias.tolist() == [-10]
        assert 0.01 < loaded.vision_head.fc1.weight.std().item() < 0.03
        assert not loaded.vision_head.fc1.bias.any()
        # What was there is what is there.
        assert torch.equal(loaded.text_head.fc1.weight, model.text_head.fc1.weight)

    def test_auto_classes(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        tiny_processor().save_pretrained(tmp_path)
        assert isinstance(AutoConfig.from_pretrained(tmp_path), FusionMatchConfig)
        assert isinstance(AutoModel.from_pretrained(tmp_path), FusionMatchModel)
        assert isinstance(AutoModelForZeroShotImageClassification.from_pretrained(tmp_path), FusionMatchModel)
        assert isinstance(AutoProcessor.from_pretrained(tmp_path), FusionMatchProcessor)

    def test_registering_again_changes_nothing(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        importlib.reload(fusionmatch)
        assert isinstance(AutoModel.from_pretrained(tmp_path), FusionMatchModel)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_attention_implementation_of_all_parts(self, implementation, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        model = FusionMatchModel.from_pretrained(tmp_path, attn_implementation=implementation)
        for part in (model, model.vision_model, model.text_model, model.vision_fusion, model.text_fusion):
            assert part.config._attn_implementation == implementation

    def test_half_precision(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        model = FusionMatchModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


class TestRefusals:
    def test_checkpoint_of_another_model(self, encoders):
        with pytest.raises(ValueError, match="configuration of a `bert` model, not of a `fusionmatch` one"):
            FusionMatchModel.from_pretrained(encoders / "bert")

    def test_dual_encoder_points_to_its_loader(self, encoders):
        with pytest.raises(ValueError, match="from_dual_encoder_pretrained"):
            FusionMatchConfig.from_pretrained(encoders / "clip")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_base_and_adapter(tmp_path_factory.mktemp("models"))


def rewrite(path, change):
    """A file of weights with other names; what `change` gives no name to is left out."""
    weights = {change(name): tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in weights.items() if name}, path, {"format": "pt"})


class TestWeightsThatAreMissing:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda name: f"renamed.{name}", " more"),
            (lambda name: None if name.startswith("vision_head.fc1") else name, "`vision_head.fc1.weight`"),
        ],
        ids=["renamed", "one layer"],
    )
    def test_of_a_checkpoint(self, change, words, models, tmp_path):
        folder = shutil.copytree(models / "base", tmp_path / "base")
        rewrite(folder / "model.safetensors", change)
        with pytest.raises(UnsafeFolderError, match="is not whole: its files lack weights") as error:
            load_pretrained(folder)
        assert words in str(error.value)

    def test_of_a_ranking_stage(self, models, tmp_path):
        ranking, processor = load_pretrained(models / "base", ranking_stage=True)
        ranking.config.untrained_modules = []
        ranking.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        load_pretrained(tmp_path)
        rewrite(tmp_path / "model.safetensors", lambda name: None if name.startswith("ranker.fc1") else name)
        with pytest.raises(UnsafeFolderError, match=r"`ranker\.fc1\.bias`, `ranker\.fc1\.weight`"):
            load_pretrained(tmp_path)
        load_pretrained(tmp_path, ranking_stage=False)

    def test_of_what_is_untrained_or_was_asked_for_are_no_fault(self, models, tmp_path):
        folder = shutil.copytree(models / "base", tmp_path / "base")
        rewrite(folder / "model.safetensors", lambda name: None if name.startswith("text_head") else name)
        load_pretrained(folder)
        model, _ = load_pretrained(folder, logit_bias_init_value=-10.0)
        assert model.similarity.logit_bias.tolist() == [-10]
        rewrite(folder / "model.safetensors", lambda name: None if name == "similarity.logit_scale" else name)
        with pytest.raises(UnsafeFolderError, match=r"`similarity\.logit_scale`"):
            load_pretrained(folder, logit_bias_init_value=-10.0)

    @pytest.mark.parametrize("part", ["lora_B", "text_head"])
    def test_of_an_adapter(self, part, models, tmp_path):
        folder = shutil.copytree(models / "adapter", tmp_path / "adapter")
        load_pretrained(folder)
        rewrite(folder / "adapter_model.safetensors", lambda name: None if part in name else name)
        with pytest.raises(UnsafeFolderError, match=f"adapter is not whole: its files lack weights.*{part}"):
            load_pretrained(folder)


@pytest.mark.parametrize("depth", [60, 700, 100_000])
@pytest.mark.parametrize(
    ("name", "opens", "closes"), [("config.json", '{"a": ', "}"), ("tokenizer_config.json", "[", "]")]
)
def test_settings_that_are_nested_too_deep(name, opens, closes, depth, models, tmp_path):
    folder = shutil.copytree(models / "base", tmp_path / "base")
    settings = (folder / name).read_text().rstrip().removesuffix("}")
    (folder / name).write_text(f'{settings}, "deep": {opens * depth}1{closes * depth}}}')
    with pytest.raises(UnsafeFolderError, match=rf"{name} is (nested more than 50 deep|not JSON that can be read)"):
        load_pretrained(folder)


def test_a_calibration_of_another_kind_is_worded(tmp_path):
    model = tiny_model()
    for values in ({"score": 1.0, "slope": 2.0}, [1.0], 3):
        content = {"t2i": values, "model_fingerprint": fingerprint(model, with_adapter=True)}
        (tmp_path / "calibration.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"calibration\.json holds no calibrations .* Calibrate anew"):
            load_calibration(tmp_path, model)


def test_the_names_of_all_of_transformers_vocabularies_are_fetched():
    names = set()
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        found = re.search(
            r"^VOCAB_FILES_NAMES = (\{.*?\})", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        names |= set(ast.literal_eval(found[1]).values()) if found else set()
    assert {"bpe.codes", "entity_vocab.json", "source.spm", "tokenizer.json"} <= names
    assert [name for name in sorted(names) if not any(Path(name).match(each) for each in SETTINGS_PATTERNS)] == []


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_adapter_on_a_base_that_changed_in_any_precision(dtype, models, tmp_path, caplog):
    folder = shutil.copytree(models / "adapter", tmp_path / "adapter")
    changed = shutil.copytree(models / "base", tmp_path / "base")
    for file in ("adapter_config.json", "fusionmatch_base.json"):
        content = json.loads((folder / file).read_text()) | {"base_model_name_or_path": str(changed)}
        (folder / file).write_text(json.dumps(content))
    loading = {} if dtype is None else {"dtype": dtype}
    model, _ = load_pretrained(folder, **loading)
    assert model.dtype == (dtype or torch.float32)
    tiny_model(seed=5).save_pretrained(changed)
    with pytest.raises(ValueError, match="was made on a base with the fingerprint"):
        load_pretrained(folder, **loading)
    assert "was not checked" not in caplog.text
    (folder / "fusionmatch_base.json").unlink()
    load_pretrained(folder, **loading)
    assert "does not note which base it was made on" in caplog.text


class TestFromVisionText:
    SMALL = {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "projection_dim": 24,
        "base_head_dim": 20,
        "vision_feature_levels": [-2, -1],
    }

    @pytest.mark.parametrize("text", ["bert", "distilbert"])
    @pytest.mark.parametrize("vision", ["vit", "clip"])
    def test_pooled_towers_are_the_source_s(self, vision, text, encoders):
        model = FusionMatchModel.from_vision_text_pretrained(encoders / vision, encoders / text, **self.SMALL)
        assert not model.training
        inputs = tiny_inputs()
        pixel_values, mask = inputs.pop("pixel_values"), inputs["attention_mask"]
        with torch.no_grad():
            if vision == "clip":
                # A pooler that always comes with the tower is part of what was trained.
                expected = CLIPVisionModel.from_pretrained(encoders / "clip")(pixel_values).pooler_output
            else:
                expected = ViTModel.from_pretrained(encoders / "vit")(pixel_values).last_hidden_state.mean(dim=1)
            found = model.encode_tower(pixel_values=pixel_values).pooled
            assert torch.allclose(found, expected, atol=1e-6)

            tokens = AutoModel.from_pretrained(encoders / text)(**inputs).last_hidden_state
            expected = torch.stack([tokens[i, : mask[i].sum()].mean(dim=0) for i in range(len(tokens))])
            assert torch.allclose(model.encode_tower(**inputs).pooled, expected, atol=1e-6)

    def test_saves_and_loads(self, encoders, tmp_path):
        model = FusionMatchModel.from_vision_text_pretrained(encoders / "clip", encoders / "distilbert", **self.SMALL)
        model.save_pretrained(tmp_path)
        loaded, info = FusionMatchModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with torch.no_grad():
            assert torch.equal(model(**tiny_inputs()).image_embeds, loaded(**tiny_inputs()).image_embeds)

    def test_settings_and_loading_arguments_are_told_apart(self, encoders):
        model = FusionMatchModel.from_vision_text_pretrained(
            encoders / "vit",
            encoders / "bert",
            **self.SMALL,
            vision_pooling="cls",  # a setting, though it begins with vision_
            text_dtype=torch.bfloat16,  # to the loading of the text tower
            text_attention_probs_dropout_prob=0.25,  # a setting of the text tower's own configuration
        )
        assert model.config.vision_pooling == "cls"
        assert {parameter.dtype for parameter in model.text_model.parameters()} == {torch.bfloat16}
        assert {parameter.dtype for parameter in model.vision_model.parameters()} == {torch.float32}
        assert model.config.text_config.attention_probs_dropout_prob == 0.25
        with torch.no_grad():
            assert model(**tiny_inputs()).logits_per_image.isfinite().all()

    def test_says_that_the_heads_are_new(self, encoders, monkeypatch):
        messages = []
        monkeypatch.setattr(fusionmatch.modeling_fusionmatch_pretrained.logger, "warning", messages.append)
        FusionMatchModel.from_vision_text_pretrained(encoders / "vit", encoders / "bert", **self.SMALL)
        assert len(messages) == 1 and "newly initialised" in messages[0]


def test_import_is_silent_and_light():
    code = """if True:
        import sys
        import fusionmatch
        heavy = {"datasets", "peft", "evaluate", "sentence_transformers", "pandas", "gradio"} & sys.modules.keys()
        ours = [name for name in sys.modules if name.startswith("fusionmatch.") and not name.endswith("_fusionmatch")]
        print(sorted(heavy), [name for name in ours if "_fusionmatch_" not in name])
    """
    assert fresh_process(code).split() == ["[]", "[]"]


def test_custom_code_upload_works_without_the_package(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    for cls, auto_class in (
        (FusionMatchConfig, "AutoConfig"),
        (FusionMatchModel, "AutoModel"),
        (FusionMatchProcessor, "AutoProcessor"),
    ):
        # Registering marks the class for the rest of the process; monkeypatch takes the mark away again.
        monkeypatch.setattr(cls, "_auto_class", None)
        cls.register_for_auto_class(auto_class)
    model = tiny_model("vit", "siglip_text_model")
    perturb(model)
    model.save_pretrained(repository)
    tiny_processor().save_pretrained(repository)
    assert sorted(path.name for path in repository.glob("*.py")) == [
        "configuration_fusionmatch.py",
        "consensus_fusionmatch.py",
        "heads_fusionmatch.py",
        "losses_fusionmatch.py",
        "modeling_fusionmatch.py",
        "modeling_fusionmatch_branch.py",
        "modeling_fusionmatch_pretrained.py",
        "outputs_fusionmatch.py",
        "processing_fusionmatch.py",
        "towers_fusionmatch.py",
    ]
    assert json.loads((repository / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_fusionmatch.FusionMatchConfig",
        "AutoModel": "modeling_fusionmatch.FusionMatchModel",
    }
    inputs = tiny_inputs()
    with torch.no_grad():
        outputs = model(**inputs)
    save_file(inputs, repository / "inputs.bin")
    save_file({name: outputs[name] for name in ("image_embeds", "text_embeds")}, repository / "expected.bin")
    code = """if True:
        import sys, torch
        from pathlib import Path
        from safetensors.torch import load_file
        from transformers import AutoModel, AutoProcessor
        sys.modules["fusionmatch"] = None  # importing it is an ImportError, also where it is installed
        folder = Path(sys.argv[1])
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            outputs = model(**load_file(folder / "inputs.bin"))
        for name, expected in load_file(folder / "expected.bin").items():
            assert torch.equal(expected, outputs[name]), name
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        print(type(model).__name__, type(processor).__name__)
    """
    printed = fresh_process(code, repository, path="", cwd=tmp_path, HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert printed.split() == ["FusionMatchModel", "FusionMatchProcessor"]
