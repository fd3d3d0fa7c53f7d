"""The result of comparing a preprocessing with arrays: one row a picture, and the settings that explain the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MAX_LEVELS", "PictureDifference", "PreprocessReport", "Step"]

#: largest difference that is accepted, in gray levels; what float32 arithmetic adds to one level is accepted too
MAX_LEVELS = 1.001


@dataclass(frozen=True)
class PictureDifference:
    """The difference between the array of one picture and what the manifest's preprocessing makes of the file.

    Attributes:
        picture: Path of the file, relative to the folder.
        largest: Largest difference in gray levels, None where the shapes differ.
        mean: Mean difference in gray levels, None where the shapes differ.
        shape: Of the given array.
        expected: Of the array that the preprocessing makes.
    """

    picture: str
    largest: float | None
    mean: float | None
    shape: tuple[int, ...]
    expected: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Return whether the arrays agree within a gray level."""
        return self.largest is not None and self.largest <= MAX_LEVELS

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with rounded differences."""
        return {
            "picture": self.picture,
            "passed": self.passed,
            "largest_levels": None if self.largest is None else round(self.largest, 4),
            "mean_levels": None if self.mean is None else round(self.mean, 4),
            "shape": list(self.shape),
            "expected_shape": list(self.expected),
        }


@dataclass(frozen=True)
class Step:
    """A step of the preprocessing that differs, such as "color", and its setting in the manifest and in the arrays."""

    name: str
    ours: str
    theirs: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return {"step": self.name, "ours": self.ours, "theirs": self.theirs}


@dataclass(frozen=True)
class PreprocessReport:
    """The comparison of a preprocessing with arrays.

    Attributes:
        pictures: In the order of their files.
        steps: Settings that differ, found by trying others; empty where all agree or none was found.
        remaining: Largest difference in gray levels with these settings, None where there are none.
        suggestion: The preprocessing with these settings, as a JSON object for `export --preprocess`.
    """

    pictures: Sequence[PictureDifference]
    steps: Sequence[Step] = ()
    remaining: float | None = None
    suggestion: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Return whether every picture agrees within a gray level."""
        return all(one.passed for one in self.pictures)

    @property
    def largest(self) -> float | None:
        """Return the largest difference of all pictures in gray levels, None where a shape differs."""
        found = [one.largest for one in self.pictures]
        return None if any(one is None for one in found) else max(one for one in found if one is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the field `preprocess` of `verify --json`."""
        largest = self.largest
        return {
            "passed": self.passed,
            "largest_levels": None if largest is None else round(largest, 4),
            "pictures": [one.to_json() for one in self.pictures],
            "steps": [one.to_json() for one in self.steps],
            "remaining_levels": None if self.remaining is None else round(self.remaining, 4),
            "suggestion": dict(self.suggestion) or None,
        }
