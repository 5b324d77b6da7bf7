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
"""An adapter meets the base that it was made on and no other, whichever way of the ecosystem it is loaded."""

import json
import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel

from fusionmatch import FusionMatchForImageTextRetrieval, FusionMatchModel, modeling_fusionmatch_pretrained
from fusionmatch.loading import fingerprint, load_pretrained, write_fingerprint
from fusionmatch.training import lora_config

from .core.tiny import make_adapter, perturb, save_base_and_adapter, tiny_inputs, tiny_model, tiny_processor


NOTE = "fusionmatch_base.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_base_and_adapter(tmp_path_factory.mktemp("models"))


def embed(model):
    with torch.no_grad():
        outputs = model.eval()(**tiny_inputs())
    return torch.cat([outputs.image_embeds, outputs.text_embeds])


def by_name(base, adapter, **kwargs):
    model = AutoModel.from_pretrained(base, **kwargs)
    model.load_adapter(adapter)
    return model


ROUTES = {
    "load_pretrained": lambda base, adapter, **kwargs: load_pretrained(adapter, **kwargs)[0],
    "load_adapter": by_name,
    "AutoModel": lambda base, adapter, **kwargs: AutoModel.from_pretrained(adapter, **kwargs),
    "FusionMatchModel": lambda base, adapter, **kwargs: FusionMatchModel.from_pretrained(adapter, **kwargs),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_another_base_is_refused_by_every_route(route, dtype, models, tmp_path):
    """Trained anew behind the adapter's back; in the other precision as well, where all bytes are others anyway."""
    base = shutil.copytree(models / "base", tmp_path / "base")
    adapter = shutil.copytree(models / "adapter", tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
    loaded = ROUTES[route](base, adapter, dtype=dtype)
    assert loaded.dtype == dtype
    assert (embed(loaded) - embed(AutoModel.from_pretrained(base, dtype=dtype))).abs().max() > 0.01

    other = tiny_model(seed=5)
    other.save_pretrained(base)
    noted = json.loads((adapter / NOTE).read_text())["fingerprint"]
    with pytest.raises(ValueError, match="Load it on the base that it was made on") as error:
        ROUTES[route](base, adapter, dtype=dtype)
    assert f"was made on a base with the fingerprint {noted}, but {base} has {fingerprint(other)}." in str(error.value)


@pytest.mark.parametrize("route", list(ROUTES)[1:])
def test_a_base_built_by_other_settings_is_refused(route, models, tmp_path):
    """Settings that change no weight change what the model says all the same."""
    adapter = make_adapter(models / "base", tmp_path / "adapter", max_logit_scale=3.0)
    words = (
        r"other settings: `max_logit_scale` 3\.0, here 100\.0\. Load both by `fusionmatch\.loading\.load_pretrained`"
    )
    with pytest.raises(ValueError, match=words):
        ROUTES[route](models / "base", adapter)
    # Named, as the error says, they make the base that it was made on.
    loaded = ROUTES[route](models / "base", adapter, max_logit_scale=3.0)
    expected, _ = load_pretrained(adapter)
    outputs, wanted = loaded.eval()(**tiny_inputs()), expected(**tiny_inputs())
    torch.testing.assert_close(outputs.logits_per_text, wanted.logits_per_text, atol=1e-5, rtol=0)


def test_settings_that_are_tuples_are_those_that_were_noted_as_lists(models, tmp_path):
    levels = {"vision_feature_levels": (), "text_feature_levels": ()}
    adapter = make_adapter(models / "base", tmp_path / "adapter", **{name: [] for name in levels})
    base = AutoModel.from_pretrained(models / "base", **levels)
    base.load_adapter(adapter)
    torch.testing.assert_close(embed(base), embed(load_pretrained(adapter)[0]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"`text_feature_levels` \[\], here \[-2, -1\], `vision_feature_levels`"):
        AutoModel.from_pretrained(adapter)


def test_a_base_with_another_start_is_refused_where_it_cannot_be_built(models, tmp_path):
    """Only `load_pretrained` puts starting values in the place of the checkpoint's own."""
    base = tiny_model()
    base.config.untrained_modules = ["vision_fusion", "text_fusion"]
    base.save_pretrained(tmp_path / "base")
    tiny_processor().save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", gate_init_value=0.5)
    with pytest.raises(ValueError, match=r"`fusionmatch\.loading\.load_pretrained` does, with the revision"):
        AutoModel.from_pretrained(adapter, gate_init_value=0.5)
    # In whatever precision.
    for dtype in (torch.float32, torch.bfloat16):
        built, _ = load_pretrained(tmp_path / "base", gate_init_value=0.5, dtype=dtype)
        built.load_adapter(adapter)


def test_a_refused_adapter_leaves_no_trace(models, tmp_path):
    strange = shutil.copytree(models / "adapter", tmp_path / "adapter")
    write_fingerprint(strange, "elsewhere", "0" * 32, "torch.float32")
    model, plain = AutoModel.from_pretrained(models / "base"), AutoModel.from_pretrained(models / "base")
    with pytest.raises(ValueError, match="fingerprint " + "0" * 32):
        model.load_adapter(strange)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(embed(model), embed(plain))
    model.load_adapter(models / "adapter")
    with pytest.raises(ValueError, match="fingerprint " + "0" * 32):
        model.load_adapter(strange, adapter_name="second")
    assert model.active_adapters() == ["default"]


# PEFT's own word on a second adapter.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_changing_adapters_reads_the_base_once_and_sees_that_it_changed(models, tmp_path, monkeypatch):
    """A digest takes longer than the loading; what PEFT merges it writes past the counter of a tensor's versions."""
    digests, digest = [], modeling_fusionmatch_pretrained._digest
    monkeypatch.setattr(
        modeling_fusionmatch_pretrained, "_digest", lambda tensors: digests.append(digest(tensors)) or digests[-1]
    )
    model, second = AutoModel.from_pretrained(models / "base"), tmp_path / "second"
    make_adapter(models / "base", second)
    digests.clear()
    model.load_adapter(models / "adapter")
    assert digests == [json.loads((second / NOTE).read_text())["fingerprint"]]
    # What the first adapter has is not missing from the second.
    assert not model.load_adapter(second, adapter_name="second").missing_keys
    model.set_adapter("second")
    model.load_adapter(models / "adapter", adapter_name="second", hotswap=True)
    assert len(digests) == 1
    torch.testing.assert_close(embed(model), embed(load_pretrained(models / "adapter")[0]), atol=1e-6, rtol=0)

    model.text_model.embeddings.word_embeddings.weight.data[3, 5] += 1e-3
    for swap in ({"adapter_name": "third"}, {"adapter_name": "second", "hotswap": True}):
        with pytest.raises(ValueError, match="was made on a base with the fingerprint"):
            model.load_adapter(second, **swap)


def test_an_adapter_without_a_note_is_peft_s_own_and_loads(models, tmp_path):
    folder = shutil.copytree(models / "adapter", tmp_path / "adapter")
    (folder / NOTE).unlink()
    other = tiny_model(seed=5)
    other.load_adapter(folder)
    assert other.active_adapters() == ["default"]


@pytest.mark.parametrize("content", ["{", "[]", '{"dtype": "torch.float32"}', '{"fingerprint": "0", "dtype": 3}'])
def test_a_note_that_cannot_be_read_is_refused(content, models, tmp_path):
    folder = shutil.copytree(models / "adapter", tmp_path / "adapter")
    (folder / NOTE).write_text(content)
    with pytest.raises(ValueError, match=r"fusionmatch_base\.json of the adapter .* Copy or fetch the adapter again"):
        by_name(models / "base", folder)


def test_what_cannot_be_told_is_said(models, monkeypatch):
    """A base in memory in another precision than the one that was noted."""
    messages = []
    monkeypatch.setattr(modeling_fusionmatch_pretrained.logger, "warning", messages.append)
    base = AutoModel.from_pretrained(models / "base", dtype=torch.bfloat16)
    base.config.name_or_path = ""
    base.load_adapter(models / "adapter")
    assert [message for message in messages if "whether the two are the same base cannot be told" in message]


def test_a_model_with_a_ranking_stage_checks_too(tmp_path):
    base = FusionMatchForImageTextRetrieval.from_dual_encoder(tiny_model())
    base.save_pretrained(tmp_path / "base")
    noted = fingerprint(base)
    base, again = (FusionMatchForImageTextRetrieval.from_pretrained(tmp_path / "base") for _ in range(2))
    adapted = get_peft_model(base, lora_config(base))
    perturb(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    write_fingerprint(tmp_path / "adapter", str(tmp_path / "base"), noted, "torch.float32")
    again.load_adapter(tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(
        FusionMatchForImageTextRetrieval.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    inputs = tiny_inputs()
    with torch.no_grad():
        outputs, wanted = again.eval()(**inputs), adapted.eval()(**inputs)
    torch.testing.assert_close(outputs.logits_per_text, wanted.logits_per_text, atol=1e-5, rtol=0)
    other = FusionMatchForImageTextRetrieval.from_dual_encoder(tiny_model(seed=5))
    with pytest.raises(ValueError, match="was made on a base with the fingerprint"):
        other.load_adapter(tmp_path / "adapter")
