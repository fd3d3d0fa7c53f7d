"""Writers of protobuf's text format and of YAML, in which other engines are configured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Enum", "Message", "comment", "protobuf_text", "yaml"]

#: a protobuf message by field; a list is a repeated field, a map field is a list of {key, value} messages
Message = Mapping[str, Any]
#: strings that need no quotes in any version of YAML
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_NOT_STRINGS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


class Enum(str):
    """The name of an enumeration's value; text format writes it without quotes."""

    __slots__ = ()


def comment(lines: Sequence[str]) -> str:
    """Return `lines` as comments, which start with # in both formats."""
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)


def protobuf_text(message: Message, indent: str = "") -> str:
    """Return `message` in protobuf's text format, one field a line.

    Args:
        message: The fields.
        indent: Spaces before each line.
    """
    return "".join(f"{indent}{name}{_field(value, indent)}\n" for name, value in message.items())


def _field(value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        return f" {_braces(value, indent)}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        inner = f"{indent}  "
        return " [\n" + ",\n".join(inner + _braces(each, inner) for each in value) + f"\n{indent}]"
    if isinstance(value, list):
        return f": [ {', '.join(map(_scalar, value))} ]" if value else ": [ ]"
    return f": {_scalar(value)}"


def _braces(message: Message, indent: str) -> str:
    flat = ", ".join(f"{name}{_field(value, '')}" for name, value in message.items() if not isinstance(value, Mapping | list))
    if all(not isinstance(value, Mapping | list) for value in message.values()) and len(flat) < 60:
        return f"{{ {flat} }}"
    return f"{{\n{protobuf_text(message, indent + '  ')}{indent}}}"


def _scalar(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(_escaped(letter) for letter in value) + '"'


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    return f"\\{ord(letter):03o}" if ord(letter) < 32 or ord(letter) == 127 else letter


def yaml(value: Any, indent: str = "") -> str:
    """Return mappings, sequences, strings, numbers and booleans as YAML in block style.

    Args:
        value: A mapping or a sequence.
        indent: Spaces before each line.
    """
    lines = []
    if isinstance(value, Mapping):
        for name, inner in value.items():
            lines.append(f"{indent}{_yaml_scalar(name)}:{_yaml_inner(inner, indent + '  ')}")
    else:
        for inner in value:
            text = _yaml_inner(inner, indent + "  ")
            # The first line of a block follows its dash.
            lines.append(f"{indent}- {text.lstrip()}")
    return "\n".join(lines)


def _yaml_inner(value: Any, indent: str) -> str:
    if isinstance(value, Mapping | list | tuple) and value:
        return "\n" + yaml(value, indent)
    return " " + ("[]" if isinstance(value, list | tuple) else "{}" if isinstance(value, Mapping) else _yaml_scalar(value))


def _yaml_scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_STRINGS:
        return value
    # JSON scalars are valid YAML.
    return json.dumps(value, ensure_ascii=False)
