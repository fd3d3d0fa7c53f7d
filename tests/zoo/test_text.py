"""The text networks: bytes are decoded as Python decodes them, padding changes nothing, and the encoder is PyTorch's."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from relu_deploy.zoo.nn.text import TextCNN, TextTransformer, TransformerEncoderLayer  # noqa: E402
from relu_deploy.zoo.nn.utf8 import REPLACEMENT, characters_of  # noqa: E402


def decoded(raw):
    """Return the code points that Python finds in `raw`; a byte that belongs to none is U+FFFD, a byte of 0 nothing."""
    found, at = [], 0
    while at < len(raw):
        for size in (1, 2, 3, 4):
            try:
                (letter,) = raw[at : at + size].decode()
            except (UnicodeDecodeError, ValueError):
                continue
            found += [ord(letter)] if raw[at] else []
            at += size
            break
        else:
            found.append(REPLACEMENT)
            at += 1
    return found


def rows_of(texts, length):
    rows = np.zeros((len(texts), length), np.uint8)
    for row, raw in zip(rows, texts, strict=True):
        row[: len(raw)] = np.frombuffer(raw, np.uint8)
    return torch.from_numpy(rows)


def check(texts, length):
    for codes, raw in zip(characters_of(rows_of(texts, length)).tolist(), texts, strict=True):
        expected = decoded(raw)
        assert codes == expected + [0] * (length - len(expected)), raw


def test_every_character_there_is_comes_out_as_its_code_point():
    every = [code for code in range(1, 0x110000) if not 0xD800 <= code <= 0xDFFF]
    rows = rows_of([chr(code).encode() for code in every], 4)
    found = torch.cat([characters_of(part) for part in rows.split(2**16)])
    assert found[:, 0].tolist() == every
    assert not found[:, 1:].any()


def test_every_pair_of_bytes_is_decoded_as_python_decodes_it():
    check([bytes([one, other]) for one in range(256) for other in range(256)], 3)


#: the edges of what is well-formed, and stray bytes
EDGES = [0x01, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF, 0x00]


def test_every_four_edge_bytes_are_decoded_as_python_decodes_them():
    grid = np.stack(np.meshgrid(*[EDGES] * 4), -1).reshape(-1, 4).astype(np.uint8)
    check([row.tobytes() for row in grid], 5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=6).map(lambda text: text.encode()), st.binary(max_size=6)), max_size=5).map(b"".join))
def test_texts_with_damage_in_the_middle_lose_nothing_behind_it(raw):
    check([raw], 160)


NETWORKS = [TextCNN, TextTransformer]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("text", ["å", "Grüße", "żółć gęślą", "x" * 40, ""])
def test_an_answer_does_not_depend_on_the_padding(network, text):
    torch.manual_seed(0)
    model, raw = network().eval().double(), text.encode()
    with torch.inference_mode():
        alone = model(rows_of([raw], max(1, len(raw))))
        for length in (len(raw) + 1, 64, 128):
            torch.testing.assert_close(model(rows_of([raw], length)), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_answer_depends_on_every_character_and_on_their_order(network):
    torch.manual_seed(0)
    model = network().eval().double()
    with torch.inference_mode():
        answers = model(rows_of([text.encode() for text in ("house", "mouse", "hoüse", "housf", "esuoh", "house ")], 16))
    for row in answers[1:]:
        assert (row - answers[0]).abs().max() > 1e-6


@pytest.mark.parametrize("network", NETWORKS)
def test_the_nul_that_stands_between_letters_is_no_letter(network):
    model = network().eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(rows_of([b"a\0b"], 8)), model(rows_of([b"ab"], 8)))


def test_the_encoder_layer_takes_pytorchs_state_dict_and_gives_its_answers():
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(24, 4, 40, batch_first=True).double().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = TransformerEncoderLayer(24, 4, 40).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(3, 7, 24, dtype=torch.float64)
    present = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [True] + [False] * 6])
    with torch.no_grad():
        mine, true = ours(x, present), theirs(x, src_key_padding_mask=~present)
    torch.testing.assert_close(mine[present], true[present], rtol=1e-10, atol=1e-10)


def test_the_relus_channels_stand_on_axis_1():
    shapes = []
    for network, features in ((TextCNN, {128, 256}), (TextTransformer, {256})):
        model = network().eval()
        for part in model.modules():
            if isinstance(part, torch.nn.ReLU):
                part.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
        model(rows_of([b"abc"], 12))
        assert {shape[1] for shape in shapes} == features
        shapes.clear()
