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
"""transformers' own common tests, in the installed version, on the classes of FusionMatch."""

import os
import unittest

import pytest

from .fetch import upstream_problem


problem = upstream_problem()
if problem is not None:
    # Nobody reads the skips of a continuous integration run: there, missing tests are a failure.
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(problem, pytrace=False)
    pytest.skip(problem, allow_module_level=True)

from fusionmatch import (  # noqa: E402
    FusionMatchConfig,
    FusionMatchForImageTextRetrieval,
    FusionMatchModel,
    FusionMatchProcessor,
)

from ..core.tiny import tiny_config, tiny_inputs, tiny_processor  # noqa: E402
from .upstream.tests.test_configuration_common import ConfigTester  # noqa: E402
from .upstream.tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from .upstream.tests.test_processing_common import ProcessorTesterMixin  # noqa: E402


class FusionMatchModelTester:
    """What `ModelTesterMixin` asks of a model: its sizes, a configuration, inputs."""

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent
        self.batch_size = 3
        self.seq_length = 7
        self.hidden_size = 16
        self.num_hidden_layers = 2  # of the towers, whose hidden states are returned
        self.num_attention_heads = 4
        self.is_training = True

    def get_config(self) -> FusionMatchConfig:
        return tiny_config(gate_init_value=0.3)

    def prepare_config_and_inputs_for_common(self) -> tuple[FusionMatchConfig, dict]:
        return self.get_config(), {**tiny_inputs(self.batch_size, self.seq_length), "return_loss": True}


class FusionMatchModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (FusionMatchModel,)
    additional_model_inputs = ("pixel_values",)
    test_resize_embeddings = False
    test_attention_outputs = False
    _is_composite = True

    def setUp(self) -> None:
        self.model_tester = FusionMatchModelTester(self)
        self.config_tester = ConfigTester(
            self,
            config_class=FusionMatchConfig,
            has_text_modality=False,
            common_properties=["projection_dim", "logit_scale_init_value", "hidden_size", "num_attention_heads"],
            projection_dim=24,
            hidden_size=32,
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    @unittest.skip("Hidden states are those of the towers, in `vision_model_output` and `text_model_output`.")
    def test_hidden_states_output(self) -> None: ...

    @unittest.skip("Hidden states are those of the towers, in `vision_model_output` and `text_model_output`.")
    def test_retain_grad_hidden_states_attentions(self) -> None: ...


class FusionMatchRetrievalModelTester(FusionMatchModelTester):
    base_model_class = FusionMatchModel


class FusionMatchForImageTextRetrievalTest(FusionMatchModelTest):
    all_model_classes = (FusionMatchForImageTextRetrieval,)

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = FusionMatchRetrievalModelTester(self)


class FusionMatchProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = FusionMatchProcessor

    @classmethod
    def _setup_image_processor(cls):
        return tiny_processor().image_processor

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_processor().tokenizer


# The upstream mixins would be collected once more under their own names.
del ModelTesterMixin, ProcessorTesterMixin
