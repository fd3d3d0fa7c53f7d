"""Pictures as files, also such that no library would write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def gradient(width=48, height=32):
    """Return a smooth RGB picture that looks different from every side."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), 255 - (x + y) * 255 // max(1, width + height - 2)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def encoded(picture, form, **options):
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def png(width, height, depth, color, rows):
    """Return a PNG file with the header's numbers as they are given. rows: raw bytes, each row behind its filter's byte."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def form(*parts, boundary="Grenze"):
    """Return the body and content type of a form. parts: (name, file name or None, bytes)."""
    body = b""
    for name, file, content in parts:
        said = f'name="{name}"' + (f'; filename="{file}"' if file else "")
        body += f"--{boundary}\r\nContent-Disposition: form-data; {said}\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
