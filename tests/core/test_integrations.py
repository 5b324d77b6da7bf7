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
"""What works for free because FusionMatch keeps to the conventions: pipelines, sentence-transformers, PEFT."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, pipeline

from fusionmatch.training import lora_config

from .tiny import END, perturb, tiny_inputs, tiny_model, tiny_pictures, tiny_processor


TEXTS = ["a red mug", "photo of a blue lamp", "a bowl"]
TRAINED_WHOLE = ["vision_head", "text_head", "vision_fusion", "text_fusion", "similarity"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    perturb(model)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModel.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def features(model, processor, texts=None, pictures=None):
    with torch.no_grad():
        if texts is not None:
            return model.get_text_features(**processor(text=texts, padding=True, return_tensors="pt")).pooler_output
        return model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output


class TestPipelines:
    def test_zero_shot_image_classification(self, checkpoint, model, processor):
        pictures = tiny_pictures(2)
        classify = pipeline("zero-shot-image-classification", model=checkpoint)
        results = classify(pictures, candidate_labels=["mug", "lamp"], hypothesis_template="a photo of a {}")
        inputs = processor(
            images=pictures, text=["a photo of a mug", "a photo of a lamp"], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            expected = model(**inputs).logits_per_image.softmax(dim=1)
        for row, result in zip(expected, results, strict=True):
            scores = {entry["label"]: entry["score"] for entry in result}
            assert [scores["mug"], scores["lamp"]] == pytest.approx(row.tolist(), abs=1e-5)

    def test_feature_extraction(self, checkpoint, model, processor):
        found = torch.tensor(pipeline("feature-extraction", model=checkpoint)(TEXTS[0]))
        expected = torch.nn.functional.normalize(features(model, processor, texts=TEXTS[:1]))
        assert torch.allclose(found, expected, atol=1e-6)

    def test_image_feature_extraction(self, checkpoint, model, processor):
        picture = tiny_pictures(1)[0]
        found = torch.tensor(pipeline("image-feature-extraction", model=checkpoint)(picture))
        expected = torch.nn.functional.normalize(features(model, processor, pictures=[picture]))
        assert torch.allclose(found, expected, atol=1e-6)


def test_sentence_transformers(checkpoint, model, processor):
    encoder = SentenceTransformer(checkpoint, device="cpu")
    assert encoder.get_embedding_dimension() == model.config.projection_dim
    pictures = tiny_pictures(3)
    texts = torch.from_numpy(encoder.encode(TEXTS))
    images = torch.from_numpy(encoder.encode(pictures))
    assert torch.allclose(texts, features(model, processor, texts=TEXTS), atol=1e-6)
    assert torch.allclose(images, features(model, processor, pictures=pictures), atol=1e-6)


ADAPTER = {
    "r": 4,
    "target_modules": r"(text_model|vision_model)\..*\.(query|value|q_proj|v_proj)",
    "modules_to_save": TRAINED_WHOLE,
}


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    """A trained adapter: the model that holds it, the folder it was saved to, and its embeddings."""
    torch.manual_seed(0)
    peft_model = get_peft_model(AutoModel.from_pretrained(checkpoint), LoraConfig(**ADAPTER)).train()
    trainable = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    # lora_A gets its first gradient in the second step, after lora_B has left zero.
    optimizer = torch.optim.Adam(trainable.values(), lr=0.05)
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    for _ in range(3):
        optimizer.zero_grad()
        peft_model(**tiny_inputs(), return_loss=True).loss.backward()
        optimizer.step()
    unmoved = [name for name in trainable if torch.equal(before[name], trainable[name])]
    assert not unmoved
    folder = tmp_path_factory.mktemp("adapter")
    peft_model.save_pretrained(folder)
    return peft_model.eval(), str(folder)


def embeddings(model):
    with torch.no_grad():
        outputs = model(**tiny_inputs())
    return {name: outputs[name] for name in ("image_embeds", "text_embeds", "logits_per_image")}


def assert_same(first, second, tolerance=1e-6):
    for name in first:
        # Logits carry a factor of up to 100.
        scale = max(1.0, first[name].abs().max().item())
        assert (first[name] - second[name]).abs().max().item() <= tolerance * scale, name


class TestPeft:
    """An adapter is the same adapter by whichever way it is loaded, and takes itself away without a trace."""

    def test_similarity_is_trained(self, trained, model):
        peft_model, folder = trained
        weights = load_file(f"{folder}/adapter_model.safetensors")
        scale = weights["base_model.model.similarity.logit_scale"]
        assert abs(scale.item() - model.similarity.logit_scale.item()) > 0.01
        cosine = embeddings(peft_model)
        ratio = cosine["logits_per_image"] / (cosine["image_embeds"] @ cosine["text_embeds"].t())
        assert torch.allclose(ratio, scale.exp(), rtol=1e-3)

    def test_gates_and_heads_are_in_the_adapter(self, trained, model):
        weights = load_file(f"{trained[1]}/adapter_model.safetensors")
        for name in (
            "vision_fusion.residual.gate",
            "text_fusion.residual.gate",
            "vision_head.fc1.weight",
            "text_head.fc2.bias",
        ):
            assert not torch.equal(weights[f"base_model.model.{name}"], model.get_parameter(name)), name

    def test_adapter_changes_the_embeddings(self, trained, model):
        difference = embeddings(trained[0])["image_embeds"] - embeddings(model)["image_embeds"]
        assert difference.abs().max().item() > 0.01

    @pytest.mark.parametrize("route", ["PeftModel", "load_adapter", "AutoModel"])
    def test_three_ways_to_load(self, route, trained, checkpoint):
        peft_model, folder = trained
        if route == "PeftModel":
            loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(checkpoint), folder)
        elif route == "load_adapter":
            loaded = AutoModel.from_pretrained(checkpoint)
            loaded.load_adapter(folder)
        else:
            loaded = AutoModel.from_pretrained(folder)
        assert_same(embeddings(peft_model), embeddings(loaded.eval()))

    def test_without_its_adapter_it_is_the_base(self, trained, model):
        peft_model, _ = trained
        with peft_model.disable_adapter():
            without = embeddings(peft_model)
        for name, expected in embeddings(model).items():
            assert torch.equal(expected, without[name]), name

    def test_two_customers_in_one_process(self, checkpoint):
        """Adapters changed for each other, and both in one batch by name, give what each gives alone."""
        base = AutoModel.from_pretrained(checkpoint)
        base.config.untrained_modules = []
        peft_model = get_peft_model(base, lora_config(base, r=2, init_lora_weights=False), adapter_name="one")
        peft_model.add_adapter("two", lora_config(base, r=2, init_lora_weights=False))
        peft_model.eval()
        ids = torch.randint(5, END, (70, 9), generator=torch.Generator().manual_seed(0))
        names = [("one", "two", "__base__")[i % 3] for i in range(70)]
        with torch.no_grad():
            alone = {}
            for name in ("one", "two"):
                peft_model.set_adapter(name)
                alone[name] = peft_model(input_ids=ids).text_embeds
            with peft_model.disable_adapter():
                alone["__base__"] = peft_model(input_ids=ids).text_embeds
            mixed = peft_model(input_ids=ids, adapter_names=names).text_embeds
        assert (alone["one"] - alone["two"]).abs().max() > 0.01
        for row, name in enumerate(names):
            assert torch.allclose(mixed[row], alone[name][row], atol=1e-5), name

    def test_merged_model_is_a_plain_model(self, trained, checkpoint, tmp_path):
        peft_model, folder = trained
        expected = embeddings(peft_model)
        merged = PeftModel.from_pretrained(AutoModel.from_pretrained(checkpoint), folder).merge_and_unload()
        assert_same(expected, embeddings(merged), tolerance=1e-5)
        merged.save_pretrained(tmp_path)
        assert not any("lora" in name for name in load_file(tmp_path / "model.safetensors"))
        assert_same(embeddings(merged), embeddings(AutoModel.from_pretrained(tmp_path)))
