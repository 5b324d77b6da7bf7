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
"""What a checkpoint or an adapter carries when it is passed on."""

from ..repository import UnsafeFolderError
from .model_card import write_merged_card, write_model_card, write_starter_card
from .push import PushedFolder, choose_files, push_folder


__all__ = [
    "PushedFolder",
    "UnsafeFolderError",
    "choose_files",
    "push_folder",
    "write_merged_card",
    "write_model_card",
    "write_starter_card",
]
