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

from .client import Client, hub_environment
from .loopback_hub import LoopbackHub


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
