"""Texts become rows of bytes, or are refused by name."""

import numpy as np
import pytest

from relu_deploy.data.texts import read_texts, takes_texts, to_bytes
from relu_deploy.errors import InputError
from relu_deploy.tensors import TensorSpec

SPEC = TensorSpec("text", "uint8", ("batch", 8))


def test_texts_are_their_utf8_filled_up_with_zeros():
    rows = to_bytes(["añ", b"12345678"], SPEC)
    assert rows.dtype == np.uint8
    assert rows.tolist() == [[0x61, 0xC3, 0xB1, 0, 0, 0, 0, 0], list(b"12345678")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the text is empty"),
        ("123456789", "has 9 bytes of UTF-8, and 'text' takes 8"),
        ("ññññe", "has 9 bytes"),
        ("a\0b", "holds a NUL character at byte 1"),
        (b"ab\xff", "is not UTF-8: byte 2 is 0xff"),
        (b"\xed\xa0\x80", "is not UTF-8: byte 0 is 0xed"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_a_text_that_does_not_fit_is_refused_never_cut(text, said):
    with pytest.raises(InputError, match=said):
        to_bytes([text], SPEC)
    with pytest.raises(InputError, match="text 2 of 3"):
        to_bytes(["fine", text, "fine"], SPEC)


def test_lines_of_a_tsv_are_texts_behind_their_labels(tmp_path):
    (tmp_path / "d.tsv").write_bytes(b"# said\nDutch\tja\r\n\nKlingon\tHIja'\nDutch\t#1\n")
    rows, labels = read_texts(tmp_path / "d.tsv", SPEC, ["English", "Dutch"])
    assert [bytes(row).rstrip(b"\0").decode() for row in rows] == ["ja", "HIja'", "#1"]
    assert labels.tolist() == [1, -1, 1]
    (tmp_path / "d.txt").write_text("ja\nnee\n")
    rows, labels = read_texts(tmp_path / "d.txt", SPEC, ["Dutch"])
    assert (len(rows), labels) == (2, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"Dutch ja\n", "line 1: there is no tab"),
        (b"Dutch\tja\nDutch\tveel te lang\n", "line 2: the text has 12 bytes"),
        (b"Dutch\t\xff\n", "line 1: the text is not UTF-8"),
        (b"\xff\tja\n", "line 1: the label is not UTF-8"),
        (b"Dutch\t\n", "line 1: the text is empty"),
        (b"# nothing\n", "there is no text in"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, said):
    (tmp_path / "d.tsv").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_texts(tmp_path / "d.tsv", SPEC, ["Dutch"])


def test_only_a_manifest_that_says_so_takes_texts():
    assert takes_texts({"preprocess": {"text": "utf-8"}})
    assert not takes_texts({"preprocess": {"scale": 1.0, "mean": [0.0], "std": [1.0], "layout": "NCHW"}})
    assert not takes_texts({"preprocess": None})
    assert not takes_texts({})
