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
"""Draws one product picture: outlines, cloth and clay, light and shadow. Used by [`write_sample_shop`] alone."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .sample_shop_shapes import SHAPES, Part, Shape


Array = np.ndarray
Area = tuple[slice, slice]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (196, 44, 48),
    "orange": (232, 122, 36),
    "yellow": (240, 196, 56),
    "green": (58, 132, 74),
    "teal": (28, 138, 140),
    "blue": (46, 92, 178),
    "purple": (118, 70, 152),
    "pink": (232, 134, 164),
    "brown": (122, 80, 52),
    "black": (44, 44, 50),
    "white": (242, 240, 234),
    "grey": (142, 146, 152),
}


@dataclass(frozen=True)
class _Material:
    """How a surface answers to light: depth of its texture, strength and narrowness of its highlight."""

    texture: float
    gloss: float
    narrowness: float = 12.0
    rim: float = 0.0


_MATERIALS: dict[str, _Material] = {
    "cotton": _Material(0.045, 0.0),
    "linen": _Material(0.11, 0.0),
    "wool": _Material(0.19, 0.0),
    "denim": _Material(0.15, 0.0),
    "velvet": _Material(0.05, 0.05, 4.0, rim=0.45),
    "leather": _Material(0.06, 0.34, 16.0),
    "suede": _Material(0.11, 0.0, rim=0.15),
    "canvas": _Material(0.13, 0.0),
    "nylon": _Material(0.07, 0.20, 10.0),
    "straw": _Material(0.24, 0.08, 8.0),
    "ceramic": _Material(0.012, 0.60, 40.0),
    "steel": _Material(0.07, 0.65, 14.0),
    "wood": _Material(0.16, 0.12, 14.0),
}

# Parts whose colour does not follow the product: rubber soles, steel, table legs and the like.
_FIXED: dict[str, tuple[tuple[int, int, int], str]] = {
    "rubber": ((238, 235, 227), "cotton"),
    "black": ((46, 44, 46), "leather"),
    "steel": ((184, 188, 194), "steel"),
    "brass": ((200, 164, 92), "steel"),
    "timber": ((182, 134, 88), "wood"),
    "cream": ((246, 242, 232), "ceramic"),
    "ink": ((40, 40, 46), "ceramic"),
}

_BACKGROUNDS = ((232, 226, 216), (222, 228, 232), (236, 224, 220), (220, 230, 222), (230, 230, 232), (240, 232, 214))
# Towards the light, and half-way between it and the eye.
_LIGHT = (-0.42, -0.56, 0.714)
_HALF_WAY = (-0.227, -0.302, 0.926)


@dataclass(frozen=True)
class Look:
    """What the text says about a product, and the proportions that tell it from its like."""

    kind: str
    color: str
    pattern: str
    material: str
    stretch: tuple[float, float] = (1.0, 1.0)


def _blur(field: Array, radius: float) -> Array:
    """Three box blurs, in floats: the 8 bits of Pillow's blur would show as bands once the slope is lit."""
    width = max(1, round(radius * 0.6))
    for axis in (0, 1, 0, 1, 0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (width + 1, width)
        total = np.cumsum(np.pad(field, pad, mode="edge"), axis=axis)
        size = 2 * width + 1
        field = (total[size:] - total[:-size] if axis == 0 else total[:, size:] - total[:, :-size]) / size
    return field


def _halve(field: Array) -> Array:
    """Means of blocks of 2 x 2."""
    rows = field[::2] + field[1::2]
    return (rows[:, ::2] + rows[:, 1::2]) * 0.25


def _shift(field: Array, down: int, right: int) -> Array:
    """Moved away from the light; what comes in at the edge is like what was there."""
    height, width = field.shape
    return np.pad(field, ((down, 0), (right, 0)), mode="edge")[:height, :width]


@lru_cache(maxsize=8)
def _noise(cells: int) -> Array:
    """A smooth tile of noise, 512 x 512, mean 0 and deviation 1, with about `cells` bumps a side; wraps around."""
    rng = np.random.default_rng(cells)
    coarse = np.tile(rng.normal(size=(cells, cells)).astype(np.float32), (3, 3))
    tile = np.asarray(Image.fromarray(coarse).resize((1536, 1536), Image.Resampling.BICUBIC))[512:1024, 512:1024]
    return (tile - tile.mean()) / tile.std()


def _sample(cells: int, u: Array, v: Array) -> Array:
    """Noise at object coordinates; the tile is two units wide, about one product."""
    return _noise(cells)[(v * 256).astype(np.int32) & 511, (u * 256).astype(np.int32) & 511]


def _step(distance: Array, pixel: float) -> Array:
    """1 where `distance` is negative, with an edge one pixel wide."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def _pattern(name: str, u: Array, v: Array, pixel: float) -> Array:
    """Share of the second colour, 0 to 1, at object coordinates; `pixel` is the size of a pixel there."""
    if name == "plain":
        return np.zeros_like(u)
    if name == "striped":
        return _step(np.abs((v / 0.2) % 1 - 0.5) * 0.2 - 0.045, pixel)
    if name == "checked":
        across = _step(np.abs((u / 0.22) % 1 - 0.5) * 0.22 - 0.055, pixel)
        down = _step(np.abs((v / 0.22) % 1 - 0.5) * 0.22 - 0.055, pixel)
        return 0.5 * (across + down)
    if name == "zigzag":
        wave = np.abs((u / 0.24) % 1 - 0.5) * 0.24
        return _step(np.abs(((v + wave) / 0.2) % 1 - 0.5) * 0.2 - 0.04, pixel)
    # Dots and flowers sit on a grid whose odd rows are shifted by half a cell.
    cell = 0.2 if name == "dotted" else 0.34
    row = np.floor(v / (cell * 0.87))
    dv = v - (row + 0.5) * cell * 0.87
    du = (u / cell + 0.5 * (row % 2)) % 1 * cell - cell / 2
    radius = np.hypot(du, dv)
    if name == "dotted":
        return _step(radius - 0.052, pixel)
    angle = np.arctan2(dv, du) + row * 0.9
    petals = _step(radius - (0.082 + 0.04 * np.cos(5 * angle)), pixel)
    leaves = _step(np.hypot(np.abs(np.abs(du) - cell / 2) * 0.9, dv * 1.7) - 0.04, pixel) * 0.55
    return np.maximum(petals * (1 - 0.75 * _step(radius - 0.03, pixel)), leaves)


def _texture(material: str, u: Array, v: Array) -> Array:
    """Brightness of the bare material around 0, about -1 to 1, at object coordinates."""
    fine = _sample(256, u, v) * 0.5
    if material == "wool":
        column = (u / 0.056) % 1 - 0.5
        stitch = ((v - 0.028 * np.abs(column) * 2) / 0.05) % 1
        return np.cos(2 * np.pi * stitch) * 0.55 - (np.abs(column) > 0.4) * 0.6 + (np.abs(column) < 0.08) * -0.4
    if material == "denim":
        return np.cos(2 * np.pi * (u * 1.3 + v) / 0.034) * 0.5 + _sample(128, u, v * 0.3) * 0.35 + fine * 0.5
    if material == "canvas":
        weave = np.cos(2 * np.pi * u / 0.036) * np.cos(2 * np.pi * v / 0.036)
        return weave * 0.7 + fine * 0.5
    if material == "linen":
        return _sample(128, u * 0.15, v * 1.4) * 0.5 + _sample(128, u * 1.4, v * 0.15) * 0.5
    if material == "straw":
        odd = np.floor(v / 0.06) % 2
        strand = np.abs(np.sin(np.pi * (u / 0.09 + 0.5 * odd))) * np.abs(np.sin(np.pi * v / 0.06))
        return 1.6 * strand - 0.8
    if material == "leather":
        return _sample(64, u, v) * 0.35 + np.minimum(np.abs(_sample(128, u, v)), 0.6) - 0.4
    if material == "suede":
        return _sample(16, u, v) * 0.4 + fine
    if material == "nylon":
        return -((np.abs((u / 0.08) % 1 - 0.5) > 0.44) | (np.abs((v / 0.08) % 1 - 0.5) > 0.44)).astype(np.float32)
    if material == "wood":
        ring = u * 11 + _sample(8, u * 0.9, v * 0.25) * 1.1
        return np.sin(2 * np.pi * ring) * 0.55 + _sample(128, u * 2, v * 0.06) * 0.45
    if material == "steel":
        return _sample(256, u * 0.04, v * 1.5) * 0.6
    return fine


def second_color_is_dark(color: str) -> bool:
    """Whether patterns on this colour are drawn in a deep tone; on the darker colours they are cream."""
    red, green, blue = COLORS[color]
    return 0.299 * red + 0.587 * green + 0.114 * blue > 145


class _Canvas:
    """One picture in the making. Works at twice the final size; masks are drawn at four times and reduced."""

    def __init__(self, size: int, view: Array, look: Look, rng: np.random.Generator) -> None:
        self.size = 2 * size
        self.view = view
        self.look = look
        self.rng = rng
        self.drape = rng.uniform(0, 2)
        self.columns = np.arange(self.size, dtype=np.float32)[None, :]
        self.rows = np.arange(self.size, dtype=np.float32)[:, None]
        self.back = np.linalg.inv(view).astype(np.float32)
        # Size of a unit in pixels, where the object's origin lies.
        self.unit = float(np.sqrt(abs(np.linalg.det(view[:2, :2]))) / view[2, 2])
        self.image = np.zeros((self.size, self.size, 3), dtype=np.float32)

    def project(self, points: Array) -> Array:
        """Object coordinates (n, 2) to pixels (n, 2)."""
        mapped = np.c_[points * self.look.stretch, np.ones(len(points))] @ self.view.T
        return mapped[:, :2] / mapped[:, 2:]

    def unproject(self, area: Area) -> tuple[Array, Array]:
        """Object coordinates u, v of the pixels of an area."""
        back, x, y = self.back, self.columns[:, area[1]], self.rows[area[0]]
        depth = back[2, 0] * x + back[2, 1] * y + back[2, 2]
        u = (back[0, 0] * x + back[0, 1] * y + back[0, 2]) / depth / self.look.stretch[0]
        v = (back[1, 0] * x + back[1, 1] * y + back[1, 2]) / depth / self.look.stretch[1]
        return u, v

    def mask(self, part: Part) -> tuple[Area, Array] | None:
        """The area that a part and its edge shadow take, and its coverage there, 0 to 1; `None` if out of sight."""
        points = self.project(part.outline)
        width = part.line_width * self.unit
        margin = 1.4 * max(part.relief, part.line_width) * self.unit + 8
        left, top = np.clip(points.min(axis=0) - margin, 0, self.size).astype(int) // 2 * 2
        right, bottom = np.clip(points.max(axis=0) + margin, 0, self.size).astype(int) // 2 * 2
        if right - left < 4 or bottom - top < 4:
            return None
        image = Image.new("L", (int(2 * (right - left)), int(2 * (bottom - top))))
        corners = [tuple(point) for point in (points - (left, top)) * 2]
        draw = ImageDraw.Draw(image)
        if width:
            draw.line(corners, fill=255, width=max(2, round(width * 2)), joint="curve")
        else:
            draw.polygon(corners, fill=255)
        cover = np.asarray(image.reduce(2), dtype=np.float32) / 255
        return (slice(top, bottom), slice(left, right)), cover

    def backdrop(self, masks: list[tuple[Area, Array] | None], shape: Shape) -> None:
        """Wall, floor and the shadow that the product throws on them."""
        tone = np.array(_BACKGROUNDS[self.rng.integers(len(_BACKGROUNDS))], dtype=np.float32)
        tone *= 0.82 if self.look.color == "white" else 0.98
        x, y = self.columns / self.size, self.rows / self.size
        light = 1.06 - 0.22 * np.hypot(x - self.rng.uniform(0.2, 0.6), y - 0.25)
        union = np.zeros((self.size, self.size), dtype=np.float32)
        for area, cover in filter(None, masks):
            np.maximum(union[area], cover, out=union[area])
        union = _halve(union)
        size = len(union)
        if shape.standing:
            foot = self.project(np.array([[0.0, shape.ground]]))[0, 1] / self.size
            light = light - 0.085 / (1 + np.exp(-(y - foot + 0.14) * 60)) + 0.06 * np.clip(y - foot, 0, 1)
            # The shadow of a standing thing is its silhouette laid flat behind its foot.
            down = foot * size - np.arange(size)
            source = np.clip(foot * size - 4 * down - 3, 0, size - 1).astype(int)
            flat = union[source] * ((down > -9) & (4 * down < foot * size))[:, None]
            shadow = _shift(_blur(flat, size / 22), 0, size // 60) * 0.46
        else:
            shadow = 0.18 * (_blur(union, size / 45) + _blur(union, size / 14))
            shadow = _shift(shadow, size // 40, size // 64)
        shadow = np.asarray(Image.fromarray(shadow.astype(np.float32)).resize((self.size, self.size)))
        self.image = tone * (light * (1 - shadow))[..., None]

    def _base(self, paint: str, u: Array, v: Array) -> tuple[Array, _Material]:
        """Colour of a part before any light falls on it, and its material."""
        name = self.look.material
        color = np.array(COLORS[self.look.color], dtype=np.float32)
        if paint in _FIXED:
            fixed, name = _FIXED[paint]
            color = np.array(fixed, dtype=np.float32)
        elif paint == "dark":
            color = color * 0.66
        elif paint == "inside":
            color, name = color * 0.34, "cotton"
        material = _MATERIALS[name]
        grain = (1 + material.texture * _texture(name, u, v))[..., None]
        if paint != "main" or self.look.pattern == "plain":
            return color * grain, material
        share = _pattern(self.look.pattern, u, v, 1.5 / self.unit)[..., None]
        cream = np.array([246, 240, 226], dtype=np.float32)
        second = color * 0.3 if second_color_is_dark(self.look.color) else cream
        return (color + (second - color) * share) * grain, material

    def add(self, part: Part, area: Area, cover: Array, folds: float) -> None:
        """Lights one part and lays it over what is there, with a soft shadow along its edge."""
        canvas = self.image[area]
        if part.paint in ("seam", "stitch"):
            canvas *= (1 + (-0.27 if part.paint == "seam" else 0.28) * cover)[..., None]
            return
        radius = max(2.0, part.relief * self.unit)
        low = _halve(cover)
        soft = np.asarray(Image.fromarray(_blur(low, radius / 2)).resize(cover.shape[::-1], Image.Resampling.BICUBIC))
        soft = np.clip(soft, 0, 1)
        shadow = _shift(soft, *(max(1, round(self.unit * 0.012)),) * 2)
        canvas *= (1 - 0.42 * shadow * (1 - cover))[..., None]

        u, v = self.unproject(area)
        height = 4.2 * radius * soft * (1 - soft / 2)
        if folds and part.folds:
            drape = _sample(4, u * 0.9 + self.drape, v * 0.33) + 0.5 * _sample(8, u * 0.8, v * 0.4 + self.drape)
            height += folds * part.folds * self.unit * 0.035 * drape * soft**2
        slope_y, slope_x = np.gradient(height)
        if part.form == "turned":
            solid = cover > 0.5
            first = np.where(solid.any(axis=1), solid.argmax(axis=1), 0)[:, None]
            last = np.where(solid.any(axis=1), solid.shape[1] - 1 - solid[:, ::-1].argmax(axis=1), 1)[:, None]
            place = (np.arange(solid.shape[1], dtype=np.float32) - first) / np.maximum(last - first, 1) * 2 - 1
            place = np.clip(place, -1, 1) * 0.94
            slope_x, slope_y = -place / np.sqrt(1 - place**2), slope_y * 0.35
        normal_z = 1 / np.sqrt(slope_x**2 + slope_y**2 + 1)
        facing = (_LIGHT[2] - _LIGHT[0] * slope_x - _LIGHT[1] * slope_y) * normal_z

        base, material = self._base(part.paint, u, v)
        bright = 0.46 + 0.54 * np.clip(facing, 0, None) / _LIGHT[2] + material.rim * (1 - normal_z) ** 1.5
        lit = base * np.clip(bright, 0.3, 1.28)[..., None]
        if material.gloss:
            glint = (_HALF_WAY[2] - _HALF_WAY[0] * slope_x - _HALF_WAY[1] * slope_y) * normal_z
            glint = np.clip(glint, 0, 1) ** material.narrowness - _HALF_WAY[2] ** material.narrowness
            lit += (255 - lit) * (material.gloss * np.clip(glint, 0, 1))[..., None]
        canvas += (lit - canvas) * cover[..., None]

    def finish(self) -> Image.Image:
        """The final size, and a little grain, which also hides the steps of 8 bits."""
        small = _halve(self.image)
        small += 1.6 * self.rng.standard_normal((*small.shape[:2], 1), dtype=np.float32)
        return Image.fromarray(np.clip(small, 0, 255).astype(np.uint8))


def _view(name: str, size: int, shape: Shape, rng: np.random.Generator) -> Array:
    """Projective map (3, 3) from object coordinates (-1 to 1, y down) to the pixels of the working canvas."""
    angle = np.deg2rad(rng.uniform(-2, 2) if shape.standing else rng.uniform(-7, 7))
    scale = rng.uniform(0.88, 0.99)
    shift = rng.uniform(-0.03, 0.03, 2)
    depth = np.eye(3)
    focus = np.zeros(2)
    if name == "turned":
        # Round things look the same from the side, and a floor has to stay level: they turn less.
        turn = rng.uniform(0.05, 0.10) if shape.standing else rng.uniform(0.16, 0.26)
        depth[0, 0] = -np.cos(2.2 * turn)
        depth[2, 0] = turn
        # The near side grows.
        scale *= 1 - 0.5 * turn
    elif name == "detail":
        scale *= 2.5
        focus = np.array(shape.focus)
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    place = np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]], [0, 0, 1]])
    center = np.array([[1, 0, -focus[0]], [0, 1, -focus[1]], [0, 0, 1]])
    # `size` of a working canvas is twice the final one: half of it is `size` pixels.
    to_pixels = np.array([[size * 0.94, 0, size], [0, size * 0.94, size], [0, 0, 1]])
    return to_pixels @ place @ depth @ center


def draw_product(look: Look, view: str, size: int, rng: np.random.Generator) -> Image.Image:
    r"""
    Draws one picture of a product.

    Args:
        look (`Look`):
            Kind, colour, pattern and material.
        view (`str`):
            `"front"`, `"turned"` (mirrored, in perspective) or `"detail"` (a close-up of the surface).
        size (`int`):
            Width and height in pixels.
        rng (`numpy.random.Generator`):
            Source of backdrop, light, place and scale.

    Returns:
        `PIL.Image.Image`: an RGB picture of `size` x `size` pixels.
    """
    shape = SHAPES[look.kind]
    canvas = _Canvas(size, _view(view, size, shape, rng), look, rng)
    masks = [canvas.mask(part) for part in shape.parts]
    canvas.backdrop(masks, shape)
    for part, mask in zip(shape.parts, masks, strict=True):
        if mask is not None:
            canvas.add(part, *mask, shape.folds)
    return canvas.finish()
