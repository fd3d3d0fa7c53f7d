"""Loads an exported PyTorch program (`.pt2`) after checking that the file cannot run code.

`torch.export.load` unpickles sample inputs, weights marked `use_pickle` and custom objects, evaluates the expressions of
varying sizes, and imports modules that a tree of arguments names. So each member of the archive is checked before torch
sees it: only the members that `torch.export.save` writes for a plain program, no pickle outside torch's `weights_only`
allow-list, only operators of known libraries, and expressions made of sizes and arithmetic.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError
from relu_deploy.gc_pause import without_collecting

if TYPE_CHECKING:
    import torch

__all__ = ["check_program_file", "load_program"]

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = {"data/weights/model_weights_config.json": "weight_", "data/constants/model_constants_config.json": "tensor_"}
MEMBER = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|data/weights/(model_weights_config\.json|weight_\d+)"
    r"|data/constants/(model_constants_config\.json|tensor_\d+)|archive_format|archive_version|byteorder|version"
    r"|\.data/(version|serialization_id)|\.format_version|\.storage_alignment|extra/[\w.-]+"
)
#: Operators that only compute. `from_file` is excluded because it maps an arbitrary file into memory.
TARGET = re.compile(
    r"torch\.ops\.(aten|prims|relu_deploy|torchvision|quantized_decomposed|higher_order)\.(?!from_file)\w+(\.\w+)?"
    r"|torch\.sym_\w+|torch\._check\w*|math\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem)"
)
#: A size: symbols such as s17 or Symbol('s17', integer=True), numbers, arithmetic and functions of integers.
EXPRESSION = re.compile(
    r"(?:\s+|[a-z]{1,4}\d{1,6}|\d{1,19}(?:\.\d{1,19})?|[-+*/%(),<>=&|~]"
    r"|Symbol\('[a-z]{1,4}\d{1,6}'(?:, ?[a-z_]+=(?:True|False))*\)|Float\('[-+.\de]{1,40}', ?precision=\d{1,5}\)"
    r"|(?:Integer|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|PythonMod|PowByNatural"
    r"|CeilToInt|FloorToInt|TruncToInt|TruncToFloat|RoundToInt|IntTrueDiv|FloatTrueDiv|FloatPow|ToFloat|Where|Identity"
    r"|Equality|Unequality|LessThan|StrictLessThan|GreaterThan|StrictGreaterThan|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|True|False|true|false"
    r"|IntInfinity|NegativeIntInfinity|Infinity|NegativeInfinity|int_oo|oo)(?![A-Za-z0-9_]))*"
)
#: A power by a number of at most two digits, which no further power follows.
SMALL_POWER = re.compile(r"\*\*\s*\d{1,2}(?![\d.])(?!\s*\*\*)")
#: Powers in one expression: SymPy evaluates those of numbers, and a tower such as 9**9**9 never ends.
MAX_POWERS = 3
#: Types of the containers that arguments and results may be in.
CONTAINERS = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "torch.Size", None}
MAX_JSON = 512 * 2**20
#: Records at the end of a ZIP archive: the last one, the locator of the larger one, and the larger one itself.
END, LOCATOR, END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
TRUST = "load it only if you trust where it came from: --trust-source"


def load_program(file: Path, *, trust: bool = False) -> torch.export.ExportedProgram:
    """Return the program in `file`.

    Args:
        file: A `.pt2` file.
        trust: Skip `check_program_file`; the file can then run any code.

    Raises:
        InputError: If the file is not a program, was saved by an incompatible version of torch, or fails the check.
    """
    import torch

    if not trust:
        check_program_file(file)
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), without_collecting():
            warnings.simplefilter("ignore")
            return torch.export.load(str(file))
    except Exception as error:  # torch.export raises any exception for a damaged archive or one of another version
        line = str(error).strip().splitlines()[:1]
        raise InputError(
            f"{file} is not an exported PyTorch program that torch {torch.__version__} can load: {''.join(line)[:200]}",
            "save it with torch.export.save, with this version of torch",
        ) from error
    finally:
        logger.setLevel(level)


def check_program_file(file: Path) -> None:
    """Check that loading `file` only reads data.

    Raises:
        InputError: If the file is not an archive or can run code; the message names the member.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if _is_ambiguous(file, len(archive.infolist())):
                raise InputError(f"{file} is an archive that readers may read differently", "save it with torch.export.save")
            for reason in _dangers(archive):
                raise InputError(f"{file} can run code when it is loaded: {reason}", TRUST)
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{file} is nested too deeply", TRUST) from None
    except Exception as error:  # zipfile and json raise many types of exceptions for other content
        raise InputError(f"{file} is not an exported PyTorch program: {error}", "save it with torch.export.save") from error


def _is_ambiguous(file: Path, members: int) -> bool:
    """Return whether torch may find other members in an archive than Python does.

    Python looks for the directory right before the record at the end, and torch where that record says; so these must be the same
    place, and the directory must have as many `members`. Neither may search for the record behind a comment.

    Source: APPNOTE.TXT, sections 4.3.14 to 4.3.16.
    """
    with file.open("rb") as stream:
        position = stream.seek(-END.size, os.SEEK_END)
        signature, _, _, _, entries, size, offset, comment = END.unpack(stream.read())
        stream.seek(max(0, position - LOCATOR.size))
        located, _, record, _ = LOCATOR.unpack(stream.read(LOCATOR.size))
        if located == b"PK\6\7":
            position -= LOCATOR.size + END_64.size
            stream.seek(position)
            signature_64, length, *_, entries, size, offset = END_64.unpack(stream.read(END_64.size))
            # The length is that of the rest of the record.
            if signature_64 != b"PK\6\6" or length != END_64.size - 12 or record != position:
                return True
    return bool(signature != b"PK\5\6" or comment or offset + size != position or entries != members)


def _dangers(archive: zipfile.ZipFile) -> Iterator[str]:
    members = archive.infolist()
    roots = {member.filename.partition("/")[0] for member in members}
    names = [member.filename.partition("/")[2] for member in members]
    if len(roots) != 1 or len(set(names)) != len(names):
        yield "it holds several archives, or one member twice"
        return
    for member, name in zip(members, names, strict=True):
        if not MEMBER.fullmatch(name):
            yield f"{name} is not part of a plain program"
        # torch stores without compression, so a small file cannot become large.
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            yield f"{name} is compressed"
        if name.endswith(".json") and member.file_size > MAX_JSON:
            yield f"{name} has {member.file_size} bytes"
    root = roots.pop()
    for name, prefix in CONFIGS.items():
        if name in names:
            yield from _pickled_tensors(json.loads(archive.read(f"{root}/{name}")), name, prefix)
    if SAMPLES in names:
        yield from _pickle_danger(archive.read(f"{root}/{SAMPLES}"))
    yield from _graph_dangers(json.loads(archive.read(f"{root}/{MODEL}")))


def _pickled_tensors(config: Mapping[str, Any], name: str, prefix: str) -> Iterator[str]:
    for tensor, facts in config["config"].items():
        if facts.get("use_pickle") or not str(facts["path_name"]).startswith(prefix):
            yield f"{name} stores {str(tensor)[:80]!r} as a pickle"


def _pickle_danger(content: bytes) -> Iterator[str]:
    import torch

    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # torch.export.load would load it again without the allow-list
        yield f"{SAMPLES} is a pickle of more than tensors"


def _graph_dangers(model: Any) -> Iterator[str]:
    """Yield a reason for each operator, expression and container in the program's JSON that is not allowed."""
    pending = [model]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        if not isinstance(value, dict):
            continue
        if "__enum__" in value:
            yield "it names an enumeration of a module"
        if "target" in value and "inputs" in value and not TARGET.fullmatch(str(value["target"])):
            yield f"it calls {str(value['target'])[:80]!r}"
        expressions = [value[key] for key in ("expr_str",) if key in value]
        for key in ("range_constraints", "symbol_name_to_range"):
            expressions += list(value[key] or ()) if isinstance(value.get(key), dict) else []
        for expression in expressions:
            if not isinstance(expression, str) or not is_size(expression):
                yield f"{str(expression)[:80]!r} is not the size of an axis"
        for key in ("in_spec", "out_spec"):
            if isinstance(value.get(key), str) and value[key]:
                yield from _container_dangers(json.loads(value[key]))
        pending += value.values()


def is_size(expression: str) -> bool:
    """Return whether an expression is the size of an axis, and quick to evaluate."""
    if len(expression) > 10_000 or not EXPRESSION.fullmatch(expression):
        return False
    powers, calls = expression.count("**"), expression.count("Pow")
    if calls:
        return calls == 1 and not powers and max(map(len, re.findall(r"(?<![a-z\d])\d+", expression)), default=0) <= 3
    return powers <= MAX_POWERS and len(SMALL_POWER.findall(expression)) == powers


def _container_dangers(spec: Any) -> Iterator[str]:
    pending = [spec]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            if "__enum__" in value or ("type" in value and value["type"] not in CONTAINERS):
                yield f"its arguments are in a {str(value.get('type'))[:80]}"
            pending += value.values()
