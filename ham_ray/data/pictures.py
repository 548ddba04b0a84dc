"""One image file to what IMAGES stores of it: checked, decoded, resized and encoded."""

from __future__ import annotations

import functools
import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ham_ray.data import formats

ENCODING = "webp-lossless"
THUMBNAIL = (12, 9)  # pixels: width and height
MAX_PIXELS = 64_000_000  # HAM10000's originals have 270,000
_PLUGINS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000")  # no other: some run programs
_REMEDIES = {
    "HEIC": "pip install 'ham_ray[heic]', or convert it to JPEG or PNG",
    "RAW": "a camera's raw data; develop it to JPEG or PNG",
    "DICOM": "export it to PNG",
}
_DNG_VERSION, _SUBFILE = 50706, 254  # TIFF
_LEVELS = np.arange(256)
_ORIENTATION = 0x0112  # EXIF


class BadPicture(Exception):
    """A file that gives no picture: `reason` as in quarantine.csv, the message is the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """A stored image: `width` and `height` of its source in pixels, `encoded` at the training size.

    `thumbnail` is the RGB of `THUMBNAIL` pixels, row by row.
    `moments` are per channel the sum of the 0–255 values and of their squares: int64[2, 3], exact.
    """

    width: int
    height: int
    pixel_hash: str
    encoded: bytes
    thumbnail: bytes
    moments: np.ndarray


def prepare(data: bytes, size: int, geometry: str) -> Picture:
    """Turn an image file into its stored form of `size`×`size` pixels, RGB. Call it within `strict_headers`.

    Raises:
        BadPicture: truncated, no image, or a header that announces more than `MAX_PIXELS`.
    """
    width, height, image = _decode(data, size, geometry)
    pixels = image.tobytes()
    return Picture(width, height, hashlib.sha256(pixels).hexdigest(), encode(image), thumbnail(image), _moments(image))


def resized(data: bytes, size: int, geometry: str) -> Image.Image:
    """Decode an image file to `size`×`size` pixels, RGB, as `prepare` does before it encodes.

    Raises:
        BadPicture: see `prepare`.
    """
    return _decode(data, size, geometry)[2]


def encode(image: Image.Image) -> bytes:
    """Encode as lossless WebP at its fastest setting; docs/ingest.md has the figures behind this choice."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def thumbnail(image: Image.Image) -> bytes:
    """Shrink to `THUMBNAIL` pixels, antialiased: every source pixel counts. 324 bytes: 9 rows of 12 RGB pixels."""
    return image.resize(THUMBNAIL, Image.Resampling.BILINEAR).tobytes()


@contextmanager
def strict_headers() -> Iterator[None]:
    """Make Pillow's warning about huge headers an error, in the whole process: enter this before threads start."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _decode(data: bytes, size: int, geometry: str) -> tuple[int, int, Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=readers()) as image:
            width, height = image.size
            _refuse_odd(image)
            # libjpeg decodes at 1/2, 1/4 or 1/8 at no cost, never below the size asked for (53 dB from the full one).
            image.draft("RGB", (size, size))
            image.load()
            rgb = _upright(image if image.mode == "RGB" else _in_rgb(image))
    except (BadPicture, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture("too many pixels", str(error)) from None
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except Exception as error:  # of damaged bytes Pillow raises whatever its parsers run into
        raise BadPicture("truncated", _without_content(error)) from None
    box = _centre_square(*rgb.size) if geometry == "crop" else None
    return width, height, rgb.resize((size, size), Image.Resampling.BICUBIC, box=box)


@functools.cache
def readers() -> tuple[str, ...]:
    """List Pillow's readers of the formats that are read, with that of HEIC where its package is installed."""
    Image.init()
    names: tuple[str, ...] = _PLUGINS
    try:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
        names = (*names, "HEIF")
    except ImportError:
        pass
    return tuple(name for name in names if name in Image.OPEN)


def _unidentified(data: bytes) -> BadPicture:
    """Say what a file is that none of the readers takes, never its bytes: they may be of a file that nobody meant."""
    kind = formats.kind(data[: formats.HEAD])
    unread = {"HEIC": "HEIF" not in readers(), "AVIF": not features.check("avif")}
    if kind == "TIFF":
        return BadPicture(kind, "bits, channels or compression of a kind that is not read, or its header breaks off")
    if kind in formats.READ and not unread.get(kind):
        return BadPicture("truncated", f"the header breaks off; {len(data):,} bytes")
    if formats.is_picture(kind):
        return BadPicture(kind, f"{kind} is not read: {_REMEDIES.get(kind, 'convert it to JPEG or PNG')}")
    return BadPicture("not an image", f"{kind or 'unknown content'}, {len(data):,} bytes")


def _without_content(error: Exception) -> str:
    """Return what Pillow says of damage, without the bytes of the file that some of its messages quote."""
    text = str(error)
    return text if re.fullmatch(r"image file is truncated[\w ()]*", text) else f"damaged ({type(error).__name__})"


def _refuse_odd(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadPicture("too many pixels", f"{width}×{height} announced, more than {MAX_PIXELS:,} pixels")
    if image.format == "TIFF" and (_DNG_VERSION in image.tag_v2 or image.tag_v2.get(_SUBFILE, 0) & 1):  # type: ignore[attr-defined]
        raise BadPicture("RAW", f"RAW is not read: {_REMEDIES['RAW']}")  # else its thumbnail would be taken for it
    # A camera's preview is no frame, and of a HEIC the first picture is the one that viewers show.
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format not in ("MPO", "HEIF"):
        raise BadPicture("several frames", f"{frames} frames, one picture is wanted")


def _in_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB. Pillow would cut 16 bits off at 255 instead of scaling them."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadPicture(
            "unknown brightness", f"{image.mode!r}: 32 bits a pixel, and nothing says which value is white"
        )
    try:
        if image.has_transparency_data:  # on white, as viewers show it: what lies below is often black
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError:  # Pillow knows no way from every colour space
        raise BadPicture("unknown colours", f"{image.mode!r}: convert it to RGB") from None


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its camera says that it is to be shown."""
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def _centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _moments(image: Image.Image) -> np.ndarray:
    counts = np.asarray(image.histogram(), np.int64).reshape(3, 256)
    return np.stack([counts @ _LEVELS, counts @ _LEVELS**2])
