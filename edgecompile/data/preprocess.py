"""Image: how a photograph becomes a model's input, as text, as JSON, and from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgecompile.errors import InputError, SpecError, near

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""In the order of Pillow's numbers 0 to 5, which Hugging Face folders use."""

WAYS = (
    "use a teacher that ships with it, a Hugging Face folder with preprocessor_config.json,"
    " or --image size=224,crop=center,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
)


@dataclass(frozen=True)
class Image:
    """Resize, crop the centre, scale, subtract `mean`, divide by `std`.

    `size` is height and width in pixels. `resize` is the length of the shorter side before the crop (0: just
    large enough to be cropped), `squash` (to `size`, the aspect ratio is lost) or `none` (crop only). `mean`
    and `std` are of the scaled values; `scale` multiplies the bytes 0..255.
    """

    size: tuple[int, int]
    resize: int | Literal["squash", "none"] = 0
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    channels: int = 3
    layout: Literal["nchw", "nhwc"] = "nchw"
    order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(1 <= side <= 16384 for side in self.size):
            raise SpecError(f"image: size {_times(self.size)} is not height x width in 1..16384 pixels")
        if self.channels not in (1, 3):
            raise SpecError(f"image: {self.channels} channels; 1 (grey) and 3 (colour) are known")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels):
                raise SpecError(
                    f"image: {name} has {len(values)} values for {self.channels} channels: give 1 or one each"
                )
        if not all(value > 0 for value in self.std) or not self.scale > 0:
            raise SpecError(f"image: std {self.std} and scale {self.scale} must be above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise SpecError(
                f"image: unknown interpolation {self.interpolation!r}{near(self.interpolation, INTERPOLATIONS)}"
            )
        if self.layout not in ("nchw", "nhwc") or self.order not in ("rgb", "bgr"):
            raise SpecError(f"image: layout {self.layout!r}, order {self.order!r}; known: nchw or nhwc, rgb or bgr")
        if self.resize not in ("squash", "none") and not (isinstance(self.resize, int) and 0 <= self.resize <= 16384):
            raise SpecError(f"image: resize {self.resize!r} is neither a number of pixels, squash nor none")
        if isinstance(self.resize, int) and self.resize and self.resize < max(self.size):
            raise SpecError(
                f"image: resize {self.resize} is less than the size {_times(self.size)} cropped from"
                " it: use at least that"
            )

    def as_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types; `image_from_dict` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def image_from_dict(options: Mapping[str, Any], where: str = "image") -> Image:
    """What `Image.as_dict` wrote, or part of it."""
    known = {field.name for field in dataclasses.fields(Image)}
    for name in options:
        if name not in known:
            raise SpecError(f"{where}: unknown option {name!r}{near(name, known)}")
    if "size" not in options:
        raise SpecError(f"{where}: size is missing: say size=224 or size=224x320 (height x width)")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return Image(**values)


def parse_image(text: str) -> Image:
    """`size=224,crop=center,resize=256,interpolation=bicubic,mean=..,std=..`; raises `SpecError`.

    `size` is one number or height x width; `crop=none` means `resize=squash`; lists are written with slashes.
    """
    options: dict[str, Any] = {}
    known = {field.name for field in dataclasses.fields(Image)} | {"crop"}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value:
            raise SpecError(f"--image: {part!r} is not option=value, e.g. size=224")
        if name not in known:
            raise SpecError(f"--image: unknown option {name!r}{near(name, known)}")
        if name in options:
            raise SpecError(f"--image: {name} is given twice")
        options[name] = value
    crop = options.pop("crop", None)
    if crop not in (None, "center", "none"):
        raise SpecError(f"--image: crop {crop!r}; known: center, none")
    if crop == "none" and options.get("resize", "squash") != "squash":
        raise SpecError(f"--image: crop=none needs resize=squash, not resize={options['resize']}")
    if crop == "center" and options.get("resize") == "squash":
        raise SpecError("--image: crop=center leaves nothing to crop after resize=squash: drop one of them")
    if crop == "none":
        options["resize"] = "squash"
    return image_from_dict({k: _value(k, v) for k, v in options.items()}, "--image")


def image_from_huggingface(path: Path) -> Image:
    """Read `preprocessor_config.json`; raises `InputError` for pictures that have no fixed size."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds a {type(config).__name__} where an object is expected")
    for flag in ("do_pad", "do_image_splitting", "do_thumbnail", "do_align_long_axis", "keep_aspect_ratio"):
        if config.get(flag):
            raise InputError(f"{path}: {flag} is not supported: say how pictures are prepared with --image")
    try:
        return _from_huggingface(config, path)
    except (SpecError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: {error}: say how pictures are prepared with --image") from error


def _from_huggingface(config: Mapping[str, Any], path: Path) -> Image:
    resizes, crops = config.get("do_resize", True), config.get("do_center_crop", "crop_size" in config)
    size, crop = config.get("size", 224), config.get("crop_size", config.get("size", 224))
    if isinstance(size, Mapping) and "longest_edge" in size:
        raise InputError(f"{path}: size.longest_edge gives pictures of many shapes: say --image size=...")
    resize: int | Literal["squash", "none"] = "squash"
    final = _sides(crop if crops or not resizes else size)
    if not resizes:
        resize = "none"
    elif (isinstance(size, Mapping) and "shortest_edge" in size) or (isinstance(size, int) and crops):
        shorter = size["shortest_edge"] if isinstance(size, Mapping) else size
        if (fraction := config.get("crop_pct")) is not None:
            final = (shorter, shorter)
            # ConvNeXt's rule: large pictures are squashed, small ones enlarged and cropped
            resize = "squash" if shorter >= 384 else int(shorter / fraction)
        else:
            final, resize = _sides(crop) if crops else (shorter, shorter), shorter
    elif crops and _sides(size) != final:
        raise InputError(f"{path}: squashes to {_sides(size)} and crops {final}: prepare the data with module:function")
    scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    normalizes = config.get("do_normalize", "image_mean" in config)
    mean, std = (config["image_mean"], config["image_std"]) if normalizes else ([0.0], [1.0])
    if config.get("rescale_offset") and config.get("do_rescale", True):
        mean = [m + 1.0 for m in mean]  # value * scale - 1, then (value - mean) / std
    return Image(
        size=final,
        resize=resize,
        interpolation=INTERPOLATIONS[int(config.get("resample", 2))],
        mean=_floats(mean),
        std=_floats(std),
        scale=scale,
        order="bgr" if config.get("do_flip_channel_order") else "rgb",
    )


def _sides(size: object) -> tuple[int, int]:
    match size:
        case bool():
            raise ValueError(f"size {size!r} is not understood")
        case int():
            return size, size
        case {"height": int(height), "width": int(width)}:
            return height, width
        case {"shortest_edge": int(side)}:
            return side, side
        case [int(first), int(second)]:
            return first, second
    raise ValueError(f"size {size!r} is not understood")


def _floats(values: Sequence[float] | float) -> tuple[float, ...]:
    return tuple(float(v) for v in values) if isinstance(values, Sequence) else (float(values),)


def _value(name: str, text: str) -> object:
    try:
        match name:
            case "size":
                sides = tuple(int(side) for side in text.lower().split("x"))
                return sides * 2 if len(sides) == 1 else sides
            case "mean" | "std":
                return tuple(float(value) for value in text.split("/"))
            case "scale":
                over, slash, under = text.partition("/")
                return float(over) / float(under) if slash else float(text)
            case "channels":
                return int(text)
            case "resize":
                return text if text in ("squash", "none") else int(text)
    except (ValueError, ZeroDivisionError) as error:
        raise SpecError(f"--image: {name}={text} is not understood: {error}") from None
    return text


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
