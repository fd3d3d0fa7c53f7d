"""Hostile archives: arrays (.npz), weights (.pth, .safetensors) and PyTorch programs (.pt2), with pickles that run code.

The payload of every pickle makes the folder `canary`, so that code which ran shows.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["hostile_arrays", "hostile_program", "hostile_weights"]


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._canary,)


def _flip(content: bytes, draw: random.Random, least: int = 0, most: int | None = None) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 2, 8))):
        changed[draw.randrange(least, min(len(changed), most or len(changed)))] ^= 1 << draw.randrange(8)
    if draw.random() < 0.15:
        del changed[draw.randrange(len(changed)) :]
    return bytes(changed)


def _archive(members: dict[str, bytes], compress: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


# ---------------------------------------------------------------- arrays


def hostile_arrays(file: Path, draw: random.Random, canary: Path) -> str:
    """Write an .npz for a model whose input is x, float32 (N, 4), and return what is wrong with it."""
    rows = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    good = _npz({"x": rows, "labels": np.array([0, 1, 2])})
    wrong = {
        "object": np.array([Payload(canary)], dtype=object),
        "big-endian": rows.astype(">f4"),
        "float64": rows.astype(np.float64),
        "complex": rows.astype(np.complex64),
        "text": np.array([["a"] * 4]),
        "structured": np.zeros(3, [("a", "f4"), ("b", "i8")]),
        "dates": np.array(["2020-01-01"], "datetime64[D]"),
        "no rows": rows[:0],
        "scalar": np.float32(1),
        "rank": rows.reshape((1,) * 30 + (3, 4)),
        "not a number": rows * np.float32("nan"),
        "order": np.asfortranarray(rows),
        "missing": None,
    }
    change = draw.choice(("flipped", "flipped", "header", "kind", "kind", "labels", "bomb", "pickle", "no archive", "member"))
    if change == "flipped":
        content = _flip(good, draw)
    elif change == "header":
        content = _archive({"x.npy": _npy_header(draw) + rows.tobytes()})
    elif change == "kind":
        change = draw.choice(sorted(wrong))
        content = _npz({"y": rows} if wrong[change] is None else {"x": wrong[change]})
    elif change == "labels":
        labels = draw.choice((np.arange(2), np.array(["a", "b", "c"]), np.array([-5, 99, 10**9]), np.zeros((3, 2, 2), int), rows))
        content = _npz({"x": rows, "labels": labels})
    elif change == "bomb":
        content = _npz({"x": np.zeros((draw.choice((10**5, 10**6)), 4), np.float32)}, compress=True)
    elif change == "pickle":
        content = draw.choice((pickle.dumps(Payload(canary)), _archive({"x.npy": pickle.dumps(Payload(canary))})))
    elif change == "member":
        content = _archive({draw.choice(("../x.npy", "/x.npy", "x", "x.npy/", "a\0.npy", " ")): b"\x93NUMPY"})
    else:
        content = draw.choice((b"", b"PK", b"\x93NUMPY\x01\0", draw.randbytes(500)))
    file.write_bytes(content)
    return change


def _npz(arrays: dict[str, Any], compress: bool = False) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(stream, **arrays)
    return stream.getvalue()


def _npy_header(draw: random.Random) -> bytes:
    """Return the header of a .npy file with a shape, type or expression that no writer would write."""
    shape = draw.choice(
        ("(3,4)", "(-1,4)", "(9999999999,4)", "(2**99,)", "()", "(1,)*99", "[3,4]", "'x'", "None", "(3.5,)", "((3,),4)")
    )
    dtype = draw.choice(("'<f4'", "'|O'", "'<f99'", "''", "'<f4,<f4'", "[('a','<f4')]", "None", "'__import__'", "'|V0'"))
    text = f"{{'descr': {dtype}, 'fortran_order': {draw.choice(('False', '3', 'x'))}, 'shape': {shape}, }}"
    text = draw.choice((text, text, "(" * 5000, "__import__('os')", "{}"))
    raw = text.encode() + b"\n"
    return b"\x93NUMPY" + draw.choice((b"\x01\x00", b"\x02\x00", b"\x09\x09")) + struct.pack("<H", len(raw)) + raw


# ---------------------------------------------------------------- weights


def hostile_weights(folder: Path, draw: random.Random, canary: Path) -> tuple[str, Path]:
    """Write weights for the shipped digits model and return what is wrong with them, and the file."""
    change = draw.choice(sorted(_WEIGHTS))
    suffix, content = _WEIGHTS[change](draw, canary)
    file = folder / f"w{suffix}"
    file.write_bytes(content)
    return change, file


def _digits() -> dict[str, Any]:
    from safetensors.torch import load_file

    from relu_deploy.paths import models_folder

    return load_file(models_folder() / "digits" / "weights.safetensors")


def _saved(value: Any, **options: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def _flipped_safetensors(draw: random.Random, _: Path) -> tuple[str, bytes]:
    from relu_deploy.paths import models_folder

    content = (models_folder() / "digits" / "weights.safetensors").read_bytes()
    return ".safetensors", _flip(content, draw, 0, 1000)


def _safetensors_header(draw: random.Random, _: Path) -> tuple[str, bytes]:
    entry = {
        "dtype": draw.choice(("F32", "BOOL", "ZZ", "")),
        "shape": draw.choice(([4], [2**62, 4], [-1], [], None)),
        "data_offsets": draw.choice(([0, 16], [16, 0], [0, 2**63], [-1, 3], [])),
    }
    header = draw.choice((json.dumps({"w": entry}), "{}", "[" * 10_000, '{"w":', "null", " " * 5000)).encode()
    length = draw.choice((len(header), len(header), 2**63, 0, len(header) + 5))
    return ".safetensors", struct.pack("<Q", length) + header + bytes(16)


def _flipped_pytorch(draw: random.Random, _: Path) -> tuple[str, bytes]:
    content = _saved(_digits(), _use_new_zipfile_serialization=draw.random() < 0.5)
    at = content.find(b"ccollections")
    return draw.choice((".pth", ".pt")), _flip(content, draw, max(0, at - 60), at + 600)


def _pickled_payload(draw: random.Random, canary: Path) -> tuple[str, bytes]:
    state = draw.choice((Payload(canary), {"w": Payload(canary)}, {"state_dict": [Payload(canary)]}))
    forms: list[Callable[[], bytes]] = [
        lambda: pickle.dumps(state),
        lambda: _saved(state),
        lambda: _saved(state, _use_new_zipfile_serialization=False),
        lambda: _archive({"archive/data.pkl": pickle.dumps(state, 2), "archive/version": b"3"}),
        lambda: _archive({"archive/data.pkl": b"\x80\x02}.", "archive/constants.pkl": pickle.dumps(state, 2)}),
    ]
    return draw.choice((".pth", ".pt", ".safetensors")), draw.choice(forms)()


def _wrong_tensors(draw: random.Random, _: Path) -> tuple[str, bytes]:
    import torch

    state = _digits()
    key = draw.choice(sorted(key for key, tensor in state.items() if tensor.dim()))
    replacement = draw.choice(
        (
            state[key] * float("nan"),
            state[key] * float("inf"),
            state[key].to(torch.complex64),
            torch.empty(state[key].shape, device="meta"),
            state[key][:1],
            state[key].flatten()[0],
            state[key].to(torch.int8),
            state[key].to_sparse(),
            None,
            "text",
        )
    )
    return ".pth", _saved({**state, key: replacement})


def _zip_bomb(draw: random.Random, _: Path) -> tuple[str, bytes]:
    members = {"archive/data.pkl": pickle.dumps({}), "archive/data/0": bytes(draw.choice((10**7, 3 * 10**8)))}
    return ".pth", _archive(members, compress=True)


def _no_weights(draw: random.Random, _: Path) -> tuple[str, bytes]:
    return draw.choice((".pth", ".safetensors")), draw.choice((b"", b"PK\x05\x06" + bytes(18), b"\x80\x02.", draw.randbytes(300)))


_WEIGHTS: dict[str, Callable[[random.Random, Path], tuple[str, bytes]]] = {
    "flipped safetensors": _flipped_safetensors,
    "header of safetensors": _safetensors_header,
    "flipped pth": _flipped_pytorch,
    "pickle that runs code": _pickled_payload,
    "wrong tensors": _wrong_tensors,
    "zip bomb": _zip_bomb,
    "no weights": _no_weights,
}

# ---------------------------------------------------------------- programs


EXPRESSIONS = (
    "__import__('os').mkdir('{canary}')",
    "s77.__class__",
    "Symbol('__import__')",
    "(" * 5000,
    "9**9**9",
    "lambda: 0",
    "",
)


def hostile_program(file: Path, draw: random.Random, canary: Path) -> str:
    """Change the valid program `file` in place and return what was done."""
    with zipfile.ZipFile(file) as archive:
        members = {each.filename: archive.read(each) for each in archive.infolist()}
    root = next(iter(members)).partition("/")[0]
    change = draw.choice(
        ("flipped", "pickle", "pickle", "use_pickle", "json", "json", "expression", "extra", "compressed", "root")
    )
    compress = change == "compressed"
    model = f"{root}/models/model.json"
    if change == "flipped":
        file.write_bytes(_flip(file.read_bytes(), draw))
        return change
    if change == "pickle":
        name = draw.choice([*members, f"{root}/data/sample_inputs/model.pt", f"{root}/data/constants/custom_obj_0"])
        members[name] = draw.choice((_saved(((Payload(canary),), {})), pickle.dumps(Payload(canary))))
        change = f"pickle in {name.partition('/')[2]}"
    elif change == "use_pickle":
        for name in [name for name in members if name.endswith("_config.json")]:
            config = json.loads(members[name])
            for at, entry in enumerate(config["config"].values()):
                if at == 0:
                    entry["use_pickle"] = True
                    members[f"{root}/{Path(name).parent.relative_to(root)}/{entry['path_name']}"] = _saved(Payload(canary))
            members[name] = json.dumps(config).encode()
    elif change == "json":
        members[model] = json.dumps(_mutated(json.loads(members[model]), draw)).encode()
    elif change == "expression":
        text = draw.choice(EXPRESSIONS).replace("{canary}", str(canary))
        tree = json.loads(members[model])
        _replace_expression(tree, text)
        members[model] = json.dumps(tree).encode()
    elif change == "extra":
        members[f"{root}/{draw.choice(('code/x.py', '../x', 'data/weights/weight_99', 'extra/x', 'models/other.json'))}"] = b"x"
    elif change == "root":
        members[f"other/{draw.choice(('a', 'models/model.json'))}"] = b"{}"
    file.write_bytes(_archive(members, compress))
    return change


def _mutated(tree: Any, draw: random.Random) -> Any:
    target = tree
    while isinstance(target, dict | list) and target:
        key = draw.choice(list(target)) if isinstance(target, dict) else draw.randrange(len(target))
        if isinstance(target[key], dict | list) and target[key] and draw.random() < 0.9:
            target = target[key]
            continue
        choices = (None, 0, -1, 10**30, "", "x", "os.system", [], {}, [[]], True, 1.5, "builtins.eval")
        target[key] = draw.choice((*choices, {"as_expr": {"expr_str": "x"}}, {"__enum__": True}))
        break
    return tree


def _replace_expression(tree: Any, text: str) -> None:
    waiting = [tree]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            if "expr_str" in current:
                current["expr_str"] = text
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current
