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
"""How the letters of a text file are kept: found out, and said where it is none that is read."""

import codecs
import logging
import re
from collections.abc import Iterator
from pathlib import Path


logger = logging.getLogger(__name__)

# Bytes that are decoded at a time to find the encoding.
_BLOCK = 2**20
_FULL_WIDTH_KANA = re.compile("[ぁ-んァ-ヺ]")
# Two Chinese characters in a row, with half-width kana around them perhaps.
_KANJI = re.compile("[ｦ-ﾟ]*[一-龠]{2,}[一-龠ｦ-ﾟ]*")


def find_encoding(file: Path) -> str:
    """
    The encoding of a text file: UTF-8, with a mark or without, UTF-16 with one, or Japanese cp932.

    Raises:
        `ValueError`: it is none of them; the message names the line.
    """
    with file.open("rb") as stream:
        start = stream.read(2)
    encoding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        for _ in _decoded(file, encoding):
            pass
        return encoding
    except UnicodeDecodeError:
        pass
    try:
        # All of it, found or not: it has to be cp932 to the end.
        japanese = sum(_is_japanese(text) for text in _decoded(file, "cp932"))
    except UnicodeDecodeError:
        japanese = 0
    if japanese:
        logger.warning(f"'{file.name}' is not UTF-8; it was read as Japanese (cp932, Shift-JIS).")
        return "cp932"
    data = file.read_bytes()
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"'{file}' is not {'UTF-16' if encoding == 'utf-16' else 'UTF-8'}: line {line} holds bytes it does not "
            "allow. Save the file as UTF-8 (in a spreadsheet: 'CSV UTF-8')."
        ) from error
    return encoding


def _is_japanese(text: str) -> bool:
    """
    Whether text that decodes as cp932 is meant to. Western and Cyrillic text may do so too, into nonsense, but not
    into full-width kana, nor mostly into words of two and more common Chinese characters (level 1 of JIS, whose first
    byte is a control character elsewhere).
    """
    if _FULL_WIDTH_KANA.search(text):
        return True
    words = _KANJI.findall(text)
    common = sum(len(w) for w in words if all(0x88 <= c.encode("cp932")[0] <= 0x97 for c in w if "一" <= c <= "龠"))
    return common > sum(not letter.isascii() for letter in text) / 2


def _decoded(file: Path, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
