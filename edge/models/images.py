"""Images as a vision model wants them: by the image processor that came with it, else resized and normalized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.core.console import info
from edge.core.errors import EdgeError, UsageError
from edge.models.logs import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PREPROCESSOR = "preprocessor_config.json"
DEFAULT_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
Pixels = NDArray[np.float32]


def image_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """Channels, height and width that a model's configuration asks for; 224 by 224 where it doesn't say."""
    found: Any = getattr(config, "image_size", None) or DEFAULT_SIZE
    height, width = found if isinstance(found, list | tuple) else (found, found)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def image_reader(folder: Path, config: PretrainedConfig) -> Callable[[Path], Pixels]:
    """What makes pixel_values [1, channels, height, width] of an image file.

    By preprocessor_config.json in `folder`; where there is none, by the field's usual settings, which it says. The
    reader raises `UsageError` for a file that can't be read.
    """
    channels, height, width = image_shape(config)
    if (folder / PREPROCESSOR).is_file():
        processor = _processor(folder)
        return lambda path: _processed(processor, open_image(path, channels))
    info(f"No {PREPROCESSOR}: images are resized to {height}x{width} and normalized as for ImageNet")
    mean, std = np.array(IMAGENET_MEAN[:channels], np.float32), np.array(IMAGENET_STD[:channels], np.float32)

    def read(path: Path) -> Pixels:
        image = open_image(path, channels).resize((width, height), resample=2)  # bilinear
        values = np.asarray(image, np.float32).reshape(height, width, channels) / 255
        return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1)[None])

    return read


def image_files(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name. Raises `UsageError` for none."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise UsageError("image.folder", f"{folder} is no folder with images", f"give one with {', '.join(SUFFIXES)}")
    return found


def open_image(path: Path, channels: int = 3) -> Any:
    """A Pillow image in colour, or in grey for one channel. Raises `UsageError` for what isn't one."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        hint = 'pip install "edge-deploy[vision]"'
        raise EdgeError("image.pillow", "reading images needs Pillow, which is not installed", hint) from error
    try:
        with Image.open(path) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        hint = "give a PNG, a JPEG or another common format"
        raise UsageError("image.format", f"{path} is not an image that can be read", hint) from error
    except OSError as error:
        reason = error.strerror or "it is damaged or cut short"
        raise UsageError("image.file", f"can't read the image {path}: {reason}", "check the file") from error


def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    with quiet():
        try:
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers' own kinds
            reason = " ".join(str(error).split())[:200]
            hint = "take the original file, or remove it to have images resized and normalized as for ImageNet"
            raise EdgeError("image.settings", f"{folder / PREPROCESSOR} can't be used: {reason}", hint) from error


def _processed(processor: Any, image: Any) -> Pixels:
    with quiet():
        found = processor(image, return_tensors="np")["pixel_values"]
    return np.ascontiguousarray(found, np.float32)
