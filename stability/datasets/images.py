"""Images from bytes: decoded, resized and normalised."""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass

import numpy as np

from stability.extras import optional

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""How files in these formats are usually named."""
"""Read by Pillow itself; others, as EPS, it hands to programs that would run what is in the file."""


@dataclass(frozen=True)
class Decoded:
    """One image: its pixels (3, size, size) as floats in [-1, 1], and a digest of them."""

    pixels: np.ndarray
    content: bytes


def decode(encoded: bytes, size: int) -> Decoded:
    """Return an image of one of the `FORMATS`, cropped to a square about its middle.

    Turned as its EXIF data say, converted to RGB, scaled so that the shorter side fits (bicubic), x / 127.5 - 1. The
    digest is of what a tower sees, so one picture in two lossless formats, or two that differ only where they are cut
    off, are one. Raises `ValueError` with the reason for bytes that are no whole image.
    """
    image, operations = optional("PIL.Image", "a dataset of images", "disk"), optional("PIL.ImageOps", "", "disk")
    # What Pillow raises for broken files depends on the format; these are all that its readers document.
    broken = (OSError, SyntaxError, ValueError, EOFError, struct.error, image.DecompressionBombError)
    try:
        with image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
            whole = operations.exif_transpose(opened).convert("RGB")
    except broken as error:
        raise ValueError(str(error)) from error
    square = operations.fit(whole, (size, size), method=image.Resampling.BICUBIC)
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
    return Decoded(pixels, hashlib.blake2b(square.tobytes(), digest_size=16).digest())
