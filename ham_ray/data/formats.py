"""Which kind of file it is, by its first bytes: names do not decide what is read."""

from __future__ import annotations

import codecs

HEAD = 512  # bytes that are looked at
READ = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WebP", "AVIF", "JPEG 2000", "HEIC")  # HEIC with the extra [heic]
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".heic", ".heif", ".hif"),
)
CAMERA_RAW = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw")
_UNREAD = ("RAW", "DICOM", "JPEG XL", "Photoshop", "FITS", "OpenEXR", "SVG")  # pictures all the same
_MAGIC = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (8, b"CR\x02", "RAW"),  # Canon's, in TIFF's clothes
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"IIRO", "RAW"),
    (0, b"IIRS", "RAW"),
    (0, b"IIU\0", "RAW"),
    (0, b"FUJIFILMCCD-RAW", "RAW"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (128, b"DICM", "DICOM"),
    (0, b"8BPS", "Photoshop"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"7z\xbc\xaf", "7z"),
    (0, b"Rar!", "rar"),
    (257, b"ustar", "tar"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"PAR1", "Parquet"),
)
_BRANDS = {  # of ISO media files, the telling ones first: an AVIF may call itself mif1 as well
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "RAW",
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
}


def kind(head: bytes) -> str:
    """Name the kind of a file by its first bytes, `HEAD` at most; "" for bytes of no known kind."""
    if not head:
        return "empty"
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":  # two letters alone begin words too
        return "BMP"
    for offset, magic, name in _MAGIC:
        if head.startswith(magic, offset):
            return name
    return _of_text(head)


def is_picture(name: str) -> bool:
    """Say whether files of this kind are pictures, read by this project or not."""
    return name in READ or name in _UNREAD


def _of_brands(head: bytes) -> str:
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[start : start + 4] for start in (8, *range(16, length, 4))}
    return next((name for brand, name in _BRANDS.items() if brand in brands), "video")


def _of_text(head: bytes) -> str:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # a letter may be cut at the end
    except UnicodeDecodeError:
        return ""
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype html", "<html")):
        return "HTML"
    if "<svg" in start:
        return "SVG"
    return "" if "\0" in text else "text"
