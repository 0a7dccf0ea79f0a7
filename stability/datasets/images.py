"""Decoding of images from bytes, with resizing and normalization."""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass

import numpy as np

from stability.extras import optional

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that Pillow decodes itself; others, such as EPS, it passes to programs that would run what is in the file."""

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""The usual file extensions of these formats."""


@dataclass(frozen=True)
class Decoded:
    """One image: its pixels (3, size, size) as floats in [-1, 1], and a digest of them."""

    pixels: np.ndarray
    content: bytes


def decode(encoded: bytes, size: int) -> Decoded:
    """Decode an image of one of the `FORMATS` and crop it to a centered square.

    The image is rotated according to its EXIF data, converted to RGB, scaled so that the shorter side fits (bicubic),
    and mapped by x / 127.5 - 1. The digest is of the result, so a picture in two lossless formats, or two pictures that
    differ only outside the crop, have the same digest. Raises `ValueError` with the reason if the bytes are not a
    complete image.
    """
    image, operations = optional("PIL.Image", "a dataset of images", "disk"), optional("PIL.ImageOps", "", "disk")
    # The exceptions of Pillow for broken files depend on the format; these are all that its readers document.
    broken = (OSError, SyntaxError, ValueError, EOFError, struct.error, image.DecompressionBombError)
    try:
        with image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
            whole = operations.exif_transpose(opened).convert("RGB")
    except broken as error:
        raise ValueError(str(error)) from error
    square = operations.fit(whole, (size, size), method=image.Resampling.BICUBIC)
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
    return Decoded(pixels, hashlib.blake2b(square.tobytes(), digest_size=16).digest())
