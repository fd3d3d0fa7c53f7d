"""What becomes of a picture's bytes: every format as a user would see it, and nothing that breaks the server."""

import asyncio
import io
import struct
import threading

import numpy as np
import pytest

pytest.importorskip("python_multipart", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

from pictures import encoded, form, gradient, png
from PIL import Image, ImageFile

from relu_deploy.errors import InputError
from relu_deploy.preprocessing.decoding import decode_picture
from relu_deploy.preprocessing.errors import PictureTooLarge
from relu_deploy.serving.bounded_executor import BoundedExecutor
from relu_deploy.serving.errors import InvalidArgument, Unavailable
from relu_deploy.serving.prediction.images import PictureLimits, file_of

LIMITS = PictureLimits()


def decoded(file, channels=3, limits=LIMITS):
    return np.asarray(decode_picture(file, channels, limits)[0]).astype(int)


def rgb(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def grey(picture):
    return np.asarray(picture.convert("L")).astype(int)


OPAQUE = {
    "PNG": encoded(gradient(), "PNG"),
    "PNG with an opaque alpha": encoded(gradient().convert("RGBA"), "PNG"),
    "PNG, palette": encoded(gradient().quantize(256), "PNG"),
    "JPEG": encoded(gradient(), "JPEG", quality=95),
    "JPEG, progressive": encoded(gradient(), "JPEG", quality=95, progressive=True),
    "JPEG, CMYK": encoded(gradient().convert("CMYK"), "JPEG", quality=95),
    "WebP": encoded(gradient(), "WEBP", quality=95),
    "WebP, lossless": encoded(gradient(), "WEBP", lossless=True),
    "BMP": encoded(gradient(), "BMP"),
    "BMP, palette": encoded(gradient().quantize(256), "BMP"),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_every_format_shows_the_same_picture(name):
    difference = np.abs(decoded(OPAQUE[name]) - rgb(gradient()))
    assert difference.mean() < 4
    assert decode_picture(OPAQUE[name], 3, LIMITS)[1] == name.partition(",")[0].partition(" ")[0].upper()
    assert np.abs(decoded(OPAQUE[name], 1) - grey(gradient())).mean() < 4


@pytest.mark.parametrize("form_", ["PNG", "JPEG", "BMP"])
def test_grey_pictures_feed_models_of_one_and_of_three_channels(form_):
    file = encoded(gradient().convert("L"), form_)
    assert np.abs(decoded(file, 1) - grey(gradient())).mean() < 3
    assert np.ptp(decoded(file, 3), axis=-1).max() == 0


@pytest.mark.parametrize("form_", ["PNG", "BMP"])
def test_black_and_white_pictures_are_black_and_white(form_):
    file = encoded(gradient().convert("1"), form_)
    assert set(np.unique(decoded(file, 1))) == {0, 255}


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off():
    wide = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    file = encoded(Image.fromarray(wide), "PNG")
    assert np.abs(decoded(file, 1) - wide / 257).max() <= 0.5
    assert np.abs(decoded(file, 3)[..., 0] - wide / 257).max() <= 0.5


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_of_color_and_alpha_are_scaled(color, channels):
    wide = np.linspace(0, 65535, 16 * 16 * channels).reshape(16, 16, channels)
    if channels in (2, 4):
        wide[..., -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    seen = decoded(png(16, 16, 16, color, rows))
    assert np.abs(seen[..., 0] - wide[..., 0] / 257).max() <= 1


@pytest.mark.parametrize(
    "file",
    [
        encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"),
        encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "WEBP", lossless=True, exact=True),
        encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"),
        encoded(Image.new("P", (8, 8), 0), "PNG", transparency=0),
        encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        encoded(Image.new("L", (8, 8), 7), "PNG", transparency=7),
    ],
    ids=["RGBA", "WebP", "LA", "palette", "RGB with a color", "L with a grey"],
)
def test_what_is_transparent_is_white(file):
    assert (decoded(file) == 255).all()
    assert (decoded(file, 1) == 255).all()


def test_what_is_half_transparent_is_half_white():
    file = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG")
    assert np.abs(decoded(file) - 127).max() <= 1


@pytest.mark.parametrize("form_", ["PNG", "WEBP"])
def test_of_a_picture_that_moves_the_first_frame_is_taken(form_):
    frames = [gradient(), Image.new("RGB", (48, 32), "red")]
    file = encoded(frames[0], form_, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert np.abs(decoded(file) - rgb(gradient())).max() == 0


#: how the upright picture is turned before it is stored with that orientation
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("form_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_photograph_is_turned_upright(orientation, form_):
    metadata = Image.Exif()
    metadata[0x0112] = orientation
    file = encoded(gradient().transpose(STORED[orientation]), form_, exif=metadata, quality=95)
    seen = decoded(file)
    assert seen.shape == (32, 48, 3)
    assert np.abs(seen - rgb(gradient())).mean() < 4


def test_damaged_metadata_do_not_spoil_a_sound_picture():
    file = encoded(gradient(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage", quality=95)
    assert np.abs(decoded(file) - rgb(gradient())).mean() < 4


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def never_unpacked(monkeypatch):
    def load(_):
        raise AssertionError("pixels were unpacked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


#: a whole lossless WebP of 16,383 x 16,383 black pixels
WEBP_BOMB = bytes.fromhex("524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03")


@pytest.mark.parametrize(
    "file",
    [
        png(20_000, 20_000, 8, 2, b"\0" * 1000),
        png(8_000, 8_000, 8, 2, b"\0" * 1000),
        png(2**31 - 1, 2**31 - 1, 16, 6, b"\0"),
        png(40_000_001, 1, 1, 0, b"\0"),
        WEBP_BOMB,
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 1000, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0) + b"\0" * 946,
    ],
    ids=["PNG 20,000", "PNG 8,000", "PNG 2,147,483,647", "PNG of one row", "WebP", "BMP"],
)
def test_a_bomb_is_refused_by_its_header(file, never_unpacked):
    assert len(file) < 2000
    with pytest.raises(PictureTooLarge, match="pixels"):
        decode_picture(file, 3, LIMITS)


def test_the_limit_is_what_it_is_set_to():
    file = encoded(gradient(100, 100), "PNG")
    assert decoded(file, limits=PictureLimits(max_pixels=10_000)).shape == (100, 100, 3)
    with pytest.raises(PictureTooLarge, match="100x100 pixels exceeds the limit of 9999"):
        decode_picture(file, 3, PictureLimits(max_pixels=9_999))


@pytest.mark.parametrize("name", OPAQUE)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_picture_is_refused(name, share):
    file = OPAQUE[name]
    with pytest.raises(InputError, match=r"damaged|is not a"):
        decode_picture(file[: int(len(file) * share)], 3, LIMITS)


@pytest.mark.parametrize(
    "file",
    [b"", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", encoded(gradient(), "GIF"), encoded(gradient(), "TIFF")],
)
def test_what_is_no_picture_of_the_four_formats_is_refused(file):
    with pytest.raises(InputError, match="not a JPEG, PNG, WebP or BMP"):
        decode_picture(file, 3, LIMITS)


def test_damage_anywhere_is_a_picture_or_a_refusal_and_nothing_else():
    generator = np.random.default_rng(0)
    outcomes = {"picture": 0, "refusal": 0}
    for file in OPAQUE.values():
        for _ in range(40):
            broken = bytearray(file)
            for place in generator.integers(0, len(file), 4):
                broken[place] = generator.integers(256)
            try:
                assert decode_picture(bytes(broken), 3, PictureLimits(max_pixels=10**6))[0].mode == "RGB"
                outcomes["picture"] += 1
            except InputError:
                outcomes["refusal"] += 1
    assert min(outcomes.values()) > 20


# ---------------------------------------------------------------- forms


def test_a_form_gives_its_one_file_to_the_byte():
    content = bytes(range(256)) * 999 + b"\r\n--Grenz\r\n--\r\n"
    body, kind = form(("note", None, b"a cat"), ("picture", "cat.png", content))
    assert file_of(body, kind) == content
    assert file_of(content, "application/octet-stream") == content
    assert file_of(content, "image/png") == content
    assert file_of(content, "") == content


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "has 0 files"),
        ([("note", None, b"x")], "has 0 files"),
        ([("a", "a.png", b"x"), ("b", "b.png", b"y")], "has 2 files"),
        ([(f"f{index}", None, b"") for index in range(1000)], "more than 16 parts"),
        ([("a", "a.png", b"")], "no picture in the body"),
    ],
)
def test_a_form_without_exactly_one_file_is_refused(parts, message):
    with pytest.raises(InvalidArgument, match=message):
        file_of(*form(*parts))


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"x", "application/json", "content type 'application/json' is not supported"),
        (b"x", "text/html; charset=utf-8", "content type 'text/html' is not supported"),
        (b"", "image/png", "no picture in the body"),
        (b"x", "multipart/form-data", "not the form"),
        (b"nonsense", "multipart/form-data; boundary=B", "not the form"),
        (b"--B\r\nno colon\r\n\r\n", "multipart/form-data; boundary=B", "not the form"),
        (b"--C\r\n\r\nx\r\n--C--", "multipart/form-data; boundary=B", "not the form"),
        (b"x", "multipart/form-data; boundary=" + "B" * 5000, "not the form"),
    ],
)
def test_what_is_neither_a_picture_nor_a_form_is_refused(body, kind, message):
    with pytest.raises(InvalidArgument, match=message):
        file_of(body, kind)


# ---------------------------------------------------------------- the threads


def test_no_more_decode_at_once_than_may_and_no_more_wait():
    executor, go, most = BoundedExecutor("test", 2, 3), threading.Event(), []
    running, lock = [], threading.Lock()

    def work(number):
        with lock:
            running.append(number)
            most.append(len(running))
        go.wait(10)
        with lock:
            running.remove(number)
        return number

    async def main():
        tasks = [asyncio.create_task(executor.run(lambda _: None, work, number)) for number in range(5)]
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match="5 pictures wait for being decoded"):
            await executor.run(lambda _: None, work, 5)
        go.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4]
        assert await executor.run(lambda _: None, work, 6) == 6

    asyncio.run(main())
    executor.close()
    assert max(most) == 2


def test_who_leaves_is_not_decoded_for_but_a_thread_that_has_begun_keeps_its_place():
    executor, go, done = BoundedExecutor("test", 1, 1), threading.Event(), []

    def work(number):
        go.wait(10)
        done.append(number)

    async def main():
        futures = []
        tasks = [asyncio.create_task(executor.run(futures.append, work, number)) for number in range(2)]
        await asyncio.sleep(0.05)
        for future in futures:
            future.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        # The first still runs, the second's place is free.
        third = asyncio.create_task(executor.run(futures.append, work, 2))
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            await executor.run(futures.append, work, 3)
        go.set()
        await third

    asyncio.run(main())
    executor.close()
    assert done == [0, 2]


def test_an_error_in_the_thread_reaches_who_asked():
    executor = BoundedExecutor("test", 1, 1)
    with pytest.raises(InputError, match="not a JPEG"):
        asyncio.run(executor.run(lambda _: None, decode_picture, b"x", 3, LIMITS))
    executor.close()


def test_a_long_strip_and_a_long_animation_are_refused_before_they_are_decoded():
    strip = encoded(Image.new("L", (101, 2)), "PNG")
    limits = PictureLimits(max_pixels=10_000, max_side=100, max_frames=2)
    with pytest.raises(PictureTooLarge, match="a side of 101 pixels exceeds the limit of 100"):
        decode_picture(strip, 1, limits)
    assert decode_picture(encoded(Image.new("L", (100, 2)), "PNG"), 1, limits)[0].size == (100, 2)
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (0, 90, 180)]
    for count, allowed in ((2, True), (3, False)):
        stream = io.BytesIO()
        frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:count], lossless=True)
        if allowed:
            assert decode_picture(stream.getvalue(), 3, limits)[0].size == (4, 4)
        else:
            with pytest.raises(PictureTooLarge, match="3 frames"):
                decode_picture(stream.getvalue(), 3, limits)
