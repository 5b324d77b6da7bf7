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
"""What the configuration accepts, refuses and keeps."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPConfig, CLIPVisionConfig

from fusionmatch import FusionMatchConfig, FusionMatchModel, configuration_fusionmatch

from .tiny import tiny_config, tower_config


def test_defaults_are_a_vit_and_a_bert():
    config = FusionMatchConfig()
    assert config.vision_config.model_type == "vit"
    assert config.text_config.model_type == "bert"
    assert config.get_text_config() is config.text_config


def test_towers_from_dicts():
    config = FusionMatchConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 96}, text_config={"hidden_size": 48}
    )
    assert isinstance(config.vision_config, CLIPVisionConfig)
    assert config.vision_config.hidden_size == 96
    assert (config.text_config.model_type, config.text_config.hidden_size) == ("bert", 48)


def test_saved_and_loaded_configuration_is_the_same(tmp_path):
    config = tiny_config(logit_bias_init_value=-10.0, max_logit_scale=None, fusion_mode="concat")
    config.save_pretrained(tmp_path)
    for loader in (FusionMatchConfig, AutoConfig):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, FusionMatchConfig)
        # The folder it came from is the one thing that loading may add.
        assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, r"\(30\) is not a multiple of .* \(4\)"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"max_level_tokens": 0}, "`max_level_tokens` must be at least 1"),
        ({"max_logit_scale": 0}, "`max_logit_scale` must be above 0, or `None` for no ceiling, got 0"),
        ({"num_hidden_layers": -1}, "`num_hidden_layers` must be 0 or more, got -1"),
        ({"hidden_dropout_prob": 1.0}, r"`hidden_dropout_prob` must lie in \[0, 1\), got 1.0"),
        ({"vision_feature_levels": []}, "must both name levels, or both be empty"),
    ],
)
def test_contradictions_are_refused_with_both_values(settings, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config(**settings)


@pytest.mark.parametrize("settings", [{"projection_dim": "wide"}, {"fusion_mode": "mean"}, {"text_pooling": "max"}])
def test_wrong_types_and_unknown_choices_are_refused(settings):
    with pytest.raises(StrictDataclassError):
        tiny_config(**settings)


def test_older_checkpoints_are_brought_to_the_present_format(tmp_path, monkeypatch):
    tiny_config(hidden_size=32).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    assert saved["format_version"] == configuration_fusionmatch.FORMAT_VERSION == 1
    # As if the second format called the width of the branch by another name than the first.
    saved["branch_size"] = saved.pop("hidden_size")
    path.write_text(json.dumps(saved))
    monkeypatch.setattr(configuration_fusionmatch, "FORMAT_VERSION", 2)
    steps = {1: lambda settings: settings | {"hidden_size": settings.pop("branch_size")}}
    monkeypatch.setattr(configuration_fusionmatch, "MIGRATIONS", steps)
    loaded = FusionMatchConfig.from_pretrained(tmp_path)
    assert (loaded.hidden_size, loaded.format_version) == (32, 2)
    # One from before there was a number.
    del saved["format_version"]
    path.write_text(json.dumps(saved))
    assert FusionMatchConfig.from_pretrained(tmp_path).hidden_size == 32
    for newer in (3, "two"):
        path.write_text(json.dumps(saved | {"format_version": newer}))
        with pytest.raises(ValueError, match=rf"format {newer!r}, and this FusionMatch reads 1 to 2. Upgrade"):
            FusionMatchConfig.from_pretrained(tmp_path)


def test_whole_dual_encoder_is_no_tower():
    with pytest.raises((ValueError, StrictDataclassError), match="whole `clip` model with two towers"):
        FusionMatchConfig(vision_config=CLIPConfig())


def test_unknown_tower_type_is_refused():
    with pytest.raises(ValueError, match="no_such_encoder"):
        FusionMatchConfig(vision_config={"model_type": "no_such_encoder"})


def test_text_encoder_as_vision_tower_is_refused():
    config = FusionMatchConfig(vision_config=tower_config("bert"), text_config=tower_config("bert"))
    with pytest.raises(ValueError, match="whose input is `input_ids`, not `pixel_values`"):
        FusionMatchModel(config)


def test_vision_encoder_as_text_tower_is_refused():
    config = FusionMatchConfig(
        vision_config=tower_config("vit"), text_config=tower_config("vit"), vision_feature_levels=[-1]
    )
    with pytest.raises(ValueError, match="whose input is `pixel_values`, not `input_ids`"):
        FusionMatchModel(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_feature_levels": [7]}, "`vision_feature_levels` names level 7, but the vision tower has 3 hidden"),
        ({"text_feature_levels": [-9]}, "`text_feature_levels` names level -9, but the text tower has 3 hidden"),
    ],
)
def test_level_that_the_tower_has_not_is_refused_when_the_model_is_built(settings, message):
    with pytest.raises(ValueError, match=message):
        FusionMatchModel(tiny_config(**settings))


def test_head_none_needs_the_size_of_the_tower():
    with pytest.raises(ValueError, match=r"`projection_dim` \(24\) must equal their size \(32\)"):
        FusionMatchModel(tiny_config(base_head="none"))
