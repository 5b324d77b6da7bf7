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
"""A Hub on this machine, and a process that talks to it."""

import os

import pytest
import torch
from peft import get_peft_model

from fusionmatch.hub import write_model_card
from fusionmatch.loading import fingerprint, load_pretrained, write_fingerprint
from fusionmatch.training import lora_config

from ..core.tiny import perturb, tiny_model, tiny_processor
from .checks import LEFTOVERS, PRIVATE
from .client import Client, hub_environment
from .loopback_hub import LoopbackHub
from .test_model_card import FACTS, SPLITS, measured


@pytest.fixture(scope="session")
def hub():
    with LoopbackHub() as server:
        yield server


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory):
    """Where the processes of the tests keep what they fetched."""
    return tmp_path_factory.mktemp("hub-home")


@pytest.fixture(scope="session")
def client(hub, hub_home, tmp_path_factory):
    """`alice`, who may write to `alice/...` and `acme/...`."""
    if not hasattr(os, "fork"):
        pytest.skip("this platform does not fork")
    environment = hub_environment(hub.endpoint, hub_home, hub.token("alice"))
    process = Client(environment, tmp_path_factory.mktemp("client"))
    yield process
    process.close()


@pytest.fixture
def since(hub):
    """How long the log was when the test began; faults end with their test."""
    yield len(hub.log)
    hub.faults.clear()


@pytest.fixture(scope="module")
def no_token_anywhere(hub, client):
    """Of all that processes wrote and repositories hold, looked at when the tests of a file have ended."""
    yield
    contents = [text.encode() for text in client.texts]
    for repository in hub.repositories.values():
        contents += [content for commit in repository.commits for content in commit.files.values()]
    assert contents
    assert not any(token.encode() in content for token in hub.tokens for content in contents)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed") / "base"
    model = tiny_model()
    perturb(model)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(base, tmp_path_factory):
    """As a training leaves it, with all that lies beside."""
    folder = tmp_path_factory.mktemp("pushed") / "adapter"
    model, processor = load_pretrained(base)
    adapted = get_peft_model(model, lora_config(model))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_fingerprint(folder, str(base), fingerprint(adapted), "torch.float32")
    write_model_card(folder, measured(), SPLITS, base=str(base), **FACTS)
    for name in (*PRIVATE, *LEFTOVERS):
        (folder / name).write_text("SECRETWORD")
    for name in ("checkpoint-3", "feature_cache"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text("SECRETWORD")
    return folder


@pytest.fixture(scope="session")
def sharded(base, tmp_path_factory):
    """The base, its weights in some files."""
    folder = tmp_path_factory.mktemp("pushed") / "sharded"
    load_pretrained(base)[0].save_pretrained(folder, max_shard_size="80KB")
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_on_hub(client, hub, base):
    pushed = client.command("push", base, "acme/base")
    assert pushed.wait() == 0, pushed.text
    return "acme/base"
