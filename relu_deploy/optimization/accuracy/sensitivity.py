"""The sensitivity list: each segment with the error that it alone causes in a lower precision, as a file that later runs read."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.paths import schema_file
from relu_deploy.storage.files import read_regular, sha256
from relu_deploy.storage.json_files import first_fault, parse_json
from relu_deploy.storage.targets import write_result

__all__ = ["SensitivityList"]

#: largest file that is read
MAX_BYTES = 2**26


@dataclass(frozen=True)
class SensitivityList:
    """The list of one model, target and precision.

    Attributes:
        path: The file.
        bundle: The float32 model.
        target: Name of the target.
        precision: Name of the precision.
    """

    path: Path
    bundle: Bundle
    target: str
    precision: str

    def write(self, costs: Sequence[tuple[str, float]], data: str) -> None:
        """Write the list.

        Args:
            costs: Segments with their relative errors, costliest first.
            data: Name of the data that they were measured on.

        Raises:
            InputError: If the file cannot be written.
        """
        fields = {
            "schema": "relu-deploy/sensitivity/1",
            **self._identity(),
            "model": self.bundle.name,
            "measured_on": data,
            "segments": [{"segment": name, "relative_error": cost if math.isfinite(cost) else None} for name, cost in costs],
        }
        write_result(self.path, json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read(self, segments: Collection[str]) -> list[tuple[str, float]]:
        """Return the segments with their relative errors, in the order of the file.

        Args:
            segments: Those of the model; others in the file, which are excluded now, are left out.

        Raises:
            InputError: If the file is not such a list, or is one of another model, target or precision.
        """
        hint = "measure the list again with --force, or choose another file with --sensitivity"
        content = read_regular(self.path, MAX_BYTES)
        try:
            fields = parse_json(content)
            fault = first_fault(fields, json.loads(schema_file("sensitivity").read_text(encoding="utf-8")))
        except ValueError as error:
            fault = f"it is not JSON: {error}"
        if fault:
            raise InputError(f"{self.path} is not a sensitivity list: {fault[:300]}", hint)
        for name, value in self._identity().items():
            if fields[name] != value:
                raise InputError(
                    f"{self.path} is the sensitivity list of another {name}: {fields[name][:100]}, not {value}", hint
                )
        errors = ((each["segment"], each["relative_error"]) for each in fields["segments"])
        return [(name, math.inf if error is None else float(error)) for name, error in errors if name in segments]

    def _identity(self) -> dict[str, str]:
        return {"model_sha256": sha256(self.bundle.onnx), "target": self.target, "precision": self.precision}
