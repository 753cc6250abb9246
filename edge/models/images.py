"""Images as a vision model wants them: by its preprocessor_config.json, with Pillow and NumPy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.core.console import info
from edge.core.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PREPROCESSOR = "preprocessor_config.json"
DEFAULT_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
Image = NDArray[np.float32]


def image_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """Channels, height and width that a model's configuration asks for; 224 by 224 where it doesn't say."""
    found: Any = getattr(config, "image_size", None) or DEFAULT_SIZE
    height, width = found if isinstance(found, list | tuple) else (found, found)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


@dataclass(frozen=True)
class Preprocessing:
    """resize: [height, width] to bring an image to, or the length of its shorter side; None leaves it.

    The middle of [height, width] is cut out of that. Values become (x * rescale - mean) / std, colour by colour.
    """

    height: int
    width: int
    channels: int
    resize: tuple[int, int] | int | None
    resample: int = 2
    rescale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, path: Path) -> Image:
        """pixel_values [1, channels, height, width] of an image file. Raises `UsageError` for one it can't read."""
        image = self._resized(_open(path, self.channels))
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        image = image.crop((left, top, left + self.width, top + self.height))
        values = np.asarray(image, np.float32).reshape(self.height, self.width, self.channels) * np.float32(
            self.rescale
        )
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)

    def _resized(self, image: Any) -> Any:
        if self.resize is None:
            return image
        if isinstance(self.resize, int):
            ratio = self.resize / min(image.size)
            size = (max(1, int(image.width * ratio)), max(1, int(image.height * ratio)))
        else:
            size = self.resize[::-1]
        return image.resize(size, self.resample)


def preprocessing_of(folder: Path, config: PretrainedConfig) -> Preprocessing:
    """What preprocessor_config.json beside a model says; the field's usual settings, said so, where there is none."""
    channels, height, width = image_shape(config)
    path = folder / PREPROCESSOR
    if not path.is_file():
        info(f"no {PREPROCESSOR}: images are resized to {height}x{width} and normalized as for ImageNet")
        return Preprocessing(height, width, channels, (height, width), mean=IMAGENET_MEAN[:channels])
    try:
        return _read(json.loads(path.read_bytes()), channels, height, width)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EdgeError("image.settings", f"{path} can't be used: {error}", "take the original file") from error


def _read(settings: dict[str, Any], channels: int, height: int, width: int) -> Preprocessing:
    """Fields that are absent mean what transformers' image processors mean by that."""
    normalized = settings.get("do_normalize", True)
    ones, zeros = (1.0,) * channels, (0.0,) * channels
    return Preprocessing(
        height=height,
        width=width,
        channels=channels,
        resize=_size(settings.get("size", [height, width])) if settings.get("do_resize", True) else None,
        resample=int(settings.get("resample", 2)),
        rescale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
        mean=tuple(settings.get("image_mean") or IMAGENET_MEAN)[:channels] if normalized else zeros,
        std=tuple(settings.get("image_std") or IMAGENET_STD)[:channels] if normalized else ones,
    )


def _size(size: Any) -> tuple[int, int] | int:
    if isinstance(size, dict):
        return int(size["shortest_edge"]) if "shortest_edge" in size else (int(size["height"]), int(size["width"]))
    return (int(size[0]), int(size[1])) if isinstance(size, list) else (int(size), int(size))


def image_files(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name. Raises `UsageError` for none."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise UsageError("image.folder", f"{folder} is no folder with images", f"give one with {', '.join(SUFFIXES)}")
    return found


def _open(path: Path, channels: int) -> Any:
    try:
        from PIL import Image as Pillow
        from PIL import UnidentifiedImageError
    except ImportError as error:
        hint = 'pip install "edge-deploy[vision]"'
        raise EdgeError("image.pillow", "reading images needs Pillow, which is not installed", hint) from error
    try:
        with Pillow.open(path) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, Pillow.DecompressionBombError, SyntaxError) as error:
        hint = "give a PNG, a JPEG or another common format"
        raise UsageError("image.format", f"{path} is not an image that can be read", hint) from error
    except OSError as error:
        reason = error.strerror or "the file is damaged or cut short"
        raise UsageError("image.file", f"can't read the image {path}: {reason}", "check the file") from error
