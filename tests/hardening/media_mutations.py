"""Pictures, texts and label files that are corrupt, of another kind, endless, or much larger than their files."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["hostile_labels", "hostile_picture", "hostile_texts", "png_of"]

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif", "PPM": ".ppm", "GIF": ".png"}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n(/tmp/x) (w) file pop\nshowpage\n"


def png_of(width: int, height: int, depth: int = 8, color: int = 0, rows: bytes | None = None) -> bytes:
    """Return a PNG file whose header says what is given, whether the rows fit it or not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height, 4096) * (1 + min(width, 4096))) if rows is None else rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def hostile_picture(folder: Path, draw: random.Random) -> str:
    """Write a picture, or what is no picture, into `folder` and return what it is."""
    change = draw.choice(("flipped", "flipped", "flipped", "cut", "bomb", "mode", "other format", "device", "name", "frames"))
    form = draw.choice(sorted(FORMATS))
    name = f"a{FORMATS[form]}"
    if change in ("flipped", "cut"):
        content = bytearray(_encoded(_gradient().convert("RGB"), form))
        if change == "cut":
            del content[draw.randrange(len(content)) :]
        else:
            for _ in range(draw.choice((1, 3, 10))):
                content[draw.randrange(min(len(content), 400))] = draw.randrange(256)
        (folder / name).write_bytes(content)
        return f"{form} {change}"
    if change == "bomb":
        width, height = draw.choice(
            ((1, 39_999_999), (39_999_999, 1), (2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 0), (20_000, 2_000))
        )
        (folder / "a.png").write_bytes(png_of(width, height, draw.choice((1, 8, 16)), draw.choice((0, 2, 3, 6, 9))))
    elif change == "mode":
        mode = draw.choice(("1", "L", "P", "I;16", "I", "F", "LA", "RGBA", "CMYK", "YCbCr", "LAB"))
        size = draw.choice(((28, 28), (1, 1), (3, 500)))
        Image.new(mode, size).save(folder / "a.tif")
        change = f"mode {mode}"
    elif change == "other format":
        content = draw.choice(
            (EPS, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a", b"%PDF-1.4\n", b"", b"qoif" + bytes(99))
        )
        (folder / name).write_bytes(content)
    elif change == "device":
        place = folder / name
        kind = draw.choice(("fifo", "zero", "folder", "dangling"))
        if kind == "fifo":
            os.mkfifo(place)
        elif kind == "folder":
            place.mkdir()
        else:
            place.symlink_to("/dev/zero" if kind == "zero" else "/nosuch")
        change = kind
    elif change == "name":
        label = draw.choice(("²", "-1", "99", "\udcff", "a\nb", "\x1b[2J", "9" * 30, "½"))
        (folder / label).mkdir()
        _gradient().save(folder / label / "a.png")
        change = f"folder {label!r}"
    else:
        frames = [Image.new("L", (2000, 2000)) for _ in range(50)]
        frames[0].save(folder / "a.tif", save_all=True, append_images=frames[1:], compression="tiff_deflate")
    if draw.random() < 0.3 and change != "frames":
        _gradient().save(folder / "b.png")
    return change


def _gradient() -> Image.Image:
    y, x = np.mgrid[:28, :28]
    return Image.fromarray((x * 5 + y * 3).astype(np.uint8))


def _encoded(picture: Any, form: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form)
    return stream.getvalue()


def hostile_texts(folder: Path, draw: random.Random) -> tuple[str, Path]:
    """Write a file of texts and return what is wrong with it, and the file."""
    file = folder / draw.choice(("t.txt", "t.tsv"))
    return _text_file(file, draw, b"spam\tcall now\nham\thello there\n")


def hostile_labels(folder: Path, draw: random.Random) -> tuple[str, Path]:
    """Write a file of labels and return what is wrong with it, and the file."""
    return _text_file(folder / "labels.txt", draw, b"a\nb\nc\nd\n")


def _text_file(file: Path, draw: random.Random, valid: bytes) -> tuple[str, Path]:
    contents = {
        "empty": b"",
        "byte order mark": b"\xef\xbb\xbf" + valid,
        "UTF-16": valid.decode().encode("utf-16"),
        "not UTF-8": valid + b"\xff\xfe\n",
        "NUL": valid.replace(b"a", b"a\0"),
        "surrogate": valid + b"\xed\xa0\x80\n",
        "escape sequences": b"\x1b[2J\x1b]0;t\x07\tx\n" + valid,
        "twice": valid + valid,
        "one long line": b"x" * 3 * 10**6,
        "many lines": b"".join(b"%d\n" % at for at in range(200_000)),
        "separators": "a\u2028b\u0085c\x0bd\x1ce\n".encode() + valid,
        "tabs": b"\t\t\t\n\tx\n" + valid,
        "carriage returns": valid.replace(b"\n", b"\r"),
        "random": draw.randbytes(2000),
    }
    change = draw.choice([*contents, "fifo", "device", "folder", "link to itself", "missing"])
    if change in contents:
        file.write_bytes(contents[change])
    elif change == "fifo":
        os.mkfifo(file)
    elif change == "folder":
        file.mkdir()
    elif change != "missing":
        file.symlink_to("/dev/zero" if change == "device" else file)
    return change, file
