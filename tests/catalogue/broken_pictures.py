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
"""
Catalogues whose pictures are broken, or lie where none may be read, made in code.

Each case writes one catalogue into a folder `shop`. Beside that folder lies `secret.png`, a sound picture that no
catalogue in `shop` may reach.
"""

import io
import json
import os
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin


@dataclass(frozen=True)
class Case:
    """A broken catalogue: its kind, a name to find it again by, and what writes it and gives the path to read."""

    kind: str
    name: str
    write: Callable[[Path], Path]


def write_secret(folder: Path) -> Path:
    """The picture that must not be read."""
    path = folder / "secret.png"
    Image.new("RGB", (40, 40), "purple").save(path)
    return path


def numbered(kind: str, make: Callable[[random.Random, int], tuple[str, Callable[[Path], Path]]]) -> Any:
    def generate(chance: random.Random) -> Iterator[Case]:
        for number in count():
            # Each case has its own source of chance, so that it can be made again alone.
            name, write = make(random.Random(chance.random()), number)
            yield Case(kind, f"{number}: {name}", write)

    return generate


def shop_of(names: list[Any], shop: Path, **more: Any) -> Path:
    """A sound table whose pictures are these, one of them sound."""
    Image.new("RGB", (40, 40), "green").save(shop / "good.png")
    rows = [{"image": name, "text": f"Thing {row}", **more} for row, name in enumerate(["good.png", *names])]
    path = shop / "shop.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _picture_case(data: bytes, name: str = "broken.img") -> Callable[[Path], Path]:
    def write(shop: Path) -> Path:
        (shop / name).write_bytes(data)
        return shop_of([name], shop)

    return write


def write_bytes(shop: Path, name: str, data: bytes) -> Path:
    Image.new("RGB", (40, 40), "green").save(shop / "good.png")
    path = shop / name
    path.write_bytes(data)
    return path


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


# Pictures.


def _saved(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.effect_noise((64, 48), 60).convert("RGB")
    more = [picture.rotate(90 * turn) for turn in range(1, 4)] if options.pop("animated", False) else []
    picture.save(file, format, **options, **({"save_all": True, "append_images": more} if more else {}))
    return file.getvalue()


def _sound_pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a hat"
    return {
        "JPEG": _saved("JPEG", exif=exif),
        "progressive JPEG": _saved("JPEG", progressive=True),
        "PNG": _saved("PNG"),
        "WebP": _saved("WEBP"),
        "GIF": _saved("GIF"),
        "TIFF": _saved("TIFF", compression="tiff_lzw"),
        "BMP": _saved("BMP"),
        "JPEG 2000": _saved("JPEG2000"),
        "ICO": _saved("ICO"),
        "animated GIF": _saved("GIF", animated=True),
        "animated WebP": _saved("WEBP", animated=True),
        "animated PNG": _saved("PNG", animated=True),
    }


SOUND = _sound_pictures()


def _cut(chance: random.Random, number: int) -> tuple[str, Callable[[Path], Path]]:
    format = list(SOUND)[number % len(SOUND)]
    data = SOUND[format]
    # Every few bytes of the headers, then anywhere.
    step = number // len(SOUND)
    at = 3 * step if step < 40 else chance.randrange(len(data))
    return f"{format} cut to {at} bytes", _picture_case(data[:at])


def changed_bytes(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 3, 20])):
        # Mostly in the header, where the lengths are.
        at = chance.randrange(min(len(data), chance.choice([64, 400, len(data)])))
        changed[at] = chance.choice([0, 0xFF, 0x7F, 0x80, chance.randrange(256)])
    return bytes(changed)


def _changed(chance: random.Random, number: int) -> tuple[str, Callable[[Path], Path]]:
    format = list(SOUND)[number % len(SOUND)]
    return f"{format} with changed bytes", _picture_case(changed_bytes(chance, SOUND[format]))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, *chunks: bytes, data: bytes = b"", depth: int = 8) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(size // 2**20)), packer.flush()])


def _bombs() -> dict[str, Callable[[], bytes]]:
    gif = SOUND["GIF"]
    bmp = SOUND["BMP"]
    jpeg = SOUND["JPEG"]
    frame = jpeg.index(b"\xff\xc0") + 5
    text = b"Comment\0\0"
    loop = b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHIII", 2, 0x8769, 4, 1, 8, 0x112, 3, 1, 6, 8)
    return {
        "100,000 pixels wide": lambda: _png(100_000, 10, data=_zeros(2**20)),
        "100,000 pixels wide and high": lambda: _png(100_000, 100_000, data=_zeros(2**20)),
        "2^31 - 1 pixels wide": lambda: _png(2**31 - 1, 2**31 - 1),
        "no pixels": lambda: _png(0, 0),
        "just below the limit, no data": lambda: _png(9_400, 9_400),
        "just below the limit, zeros": lambda: _png(9_400, 9_400, data=_zeros(90 * 2**20)),
        "just below the limit, 1 bit": lambda: _png(9_400, 9_400, data=_zeros(12 * 2**20), depth=1),
        "just above the limit": lambda: _png(9_500, 9_500, data=_zeros(90 * 2**20)),
        "compressed zeros behind a small picture": lambda: _png(8, 8, data=_zeros(70 * 2**20)),
        "iCCP of 70 MB": lambda: _png(8, 8, _chunk(b"iCCP", b"name\0\0" + _zeros(70 * 2**20)), data=_zeros(2**20)),
        "zTXt of 70 MB": lambda: _png(8, 8, _chunk(b"zTXt", text + _zeros(70 * 2**20)), data=_zeros(2**20)),
        "iTXt of 70 MB": lambda: _png(
            8, 8, _chunk(b"iTXt", b"Comment\0\1\0\0\0" + _zeros(70 * 2**20)), data=_zeros(2**20)
        ),
        "tEXt of 2 MB": lambda: _png(8, 8, _chunk(b"tEXt", b"Comment\0" + b"x" * 2**21), data=_zeros(2**20)),
        "500 texts of 1 MB": lambda: _png(8, 8, *[_chunk(b"zTXt", text + _zeros(2**20))] * 500, data=_zeros(2**20)),
        "100,000 empty chunks": lambda: _png(8, 8, *[_chunk(b"teSt", b"")] * 100_000, data=_zeros(2**20)),
        "a chunk longer than the file": lambda: _png(8, 8, b"\x7f\xff\xff\xffzTXt"),
        "EXIF that points at itself": lambda: _png(8, 8, _chunk(b"eXIf", loop), data=_zeros(2**20)),
        "TIFF that points at itself": lambda: loop,
        "JPEG of 65,535 x 65,535": lambda: jpeg[:frame] + b"\xff\xff\xff\xff" + jpeg[frame + 4 :],
        "GIF of 65,535 x 65,535": lambda: gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "BMP of 2^31 - 1 x 2^31 - 1": lambda: bmp[:18] + b"\xff\xff\xff\x7f" * 2 + bmp[26:],
        "GIF of 3,000 frames": lambda: _many_frames(3_000),
        "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n%%EndComments\n{} loop\n",
        "SVG with an entity": lambda: b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        "zip": lambda: zipped({"a.jpg": jpeg}),
    }


def _many_frames(number: int) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("L", (8, 8), turn % 256) for turn in range(number)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def _bomb(chance: random.Random, number: int) -> tuple[str, Callable[[Path], Path]]:
    bombs = _bombs()
    if number < len(bombs):
        name = list(bombs)[number]
        return name, lambda shop: _picture_case(bombs[name]())(shop)
    width, height = (chance.choice([1, 7, 1000, 65_535, 2**20, 2**31 - 1]) for _ in range(2))
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * chance.randrange(2**12), zip=True)
    data = _png(width, height, data=_zeros(2**20), depth=chance.choice([0, 1, 2, 4, 8, 16, 255]))
    return f"PNG of {width} x {height}", _picture_case(data)


# Where a cell of the picture column may point.

_WAYS_OUT = [
    "../secret.png",
    "..\\secret.png",
    "./../shop/../secret.png",
    "sub/../../secret.png",
    "sub\\..\\..\\secret.png",
    "....//secret.png",
    "..%2fsecret.png",
    "%2e%2e/secret.png",
    "..%5csecret.png",
    "..%c0%afsecret.png",
    "{outside}/secret.png",
    "file://{outside}/secret.png",
    "file:{outside}/secret.png",
    "//localhost{outside}/secret.png",
    "\\\\localhost\\c$\\secret.png",
    "\\\\?\\{outside}/secret.png",
    "C:\\secret.png",
    "C:secret.png",
    "~/secret.png",
    "~root/secret.png",
    "$HOME/secret.png",
    "/etc/passwd",
    "/proc/self/environ",
    "/proc/self/cwd/secret.png",
    "/dev/zero",
    "/dev/stdin",
    "/dev/fd/0",
    "../secret.png\0.png",
    "good.png\0",
    "good.png/../../secret.png",
    "good.png/",
    ".",
    "..",
    "/",
    "shop.jsonl",
    "link.png",
    "links/secret.png",
    "loop.png",
    "fifo.png",
    "socket.png",
    "zero.png",
    "folder.png",
    "dangling.png",
    "locked.png",
    "locked/secret.png",
    "con",
    "nul.png",
    "a" * 300,
    "a/" * 3_000,
    "\ud800.png",
    "\u202egnp.terces/..",
    "..\uff0fsecret.png",
    "* ",
    "-rf",
    "|cat secret.png",
    "`cat secret.png`",
]


def _pointer(chance: random.Random, number: int) -> tuple[str, Callable[[Path], Path]]:
    way = _WAYS_OUT[number % len(_WAYS_OUT)]
    if number >= len(_WAYS_OUT):
        joined = (chance.choice(_WAYS_OUT) for _ in range(chance.choice([1, 2, 3])))
        way = chance.choice(["/", "", "\\", "|"]).join([chance.choice(["sub", ".", "", "links"]), *joined])

    def write(shop: Path) -> Path:
        _odd_files(shop)
        return shop_of([way.replace("{outside}", str(shop.parent))], shop)

    return repr(way[:60]), write


def _odd_files(shop: Path) -> None:
    (shop / "sub").mkdir()
    (shop / "folder.png").mkdir()
    (shop / "link.png").symlink_to(shop.parent / "secret.png")
    (shop / "links").symlink_to(shop.parent)
    (shop / "loop.png").symlink_to(shop / "loop.png")
    (shop / "zero.png").symlink_to("/dev/zero")
    (shop / "dangling.png").symlink_to(shop / "nowhere.png")
    os.mkfifo(shop / "fifo.png")
    # A socket's name is short; a relative one always is.
    server, home = socket.socket(socket.AF_UNIX), Path.cwd()
    try:
        os.chdir(shop)
        server.bind("socket.png")
    finally:
        os.chdir(home)
        server.close()
    (shop / "locked.png").write_bytes(SOUND["PNG"])
    (shop / "locked.png").chmod(0)
    (shop / "locked").mkdir(mode=0)


PICTURE_KINDS = [
    numbered("pictures cut short", _cut),
    numbered("pictures with changed bytes", _changed),
    numbered("pictures that are bombs", _bomb),
    numbered("picture cells that lead elsewhere", _pointer),
]
