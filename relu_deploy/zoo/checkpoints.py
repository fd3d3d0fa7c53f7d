"""Finds the sets of weights in a training checkpoint, and chooses one of them.

A checkpoint may hold weights several times: those that were trained and their moving average (`ema`), or those of a student and a
teacher. Where a model fits both, the averaged ones are taken, as timm and Ultralytics do, and the choice is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_deploy.errors import InputError, nearest

__all__ = ["ChosenWeights", "StateDict", "choose_state_dict"]

StateDict = Mapping[str, Any]

#: Keys under which training scripts keep the moving average of the weights.
AVERAGED_KEYS = (
    *("state_dict_ema", "model_ema", "params_ema", "ema", "ema_state_dict", "ema_model", "model_ema_state_dict"),
    *("ema_params", "averaged_model", "swa_model", "swa_state_dict"),
)
#: Keys under which they keep the weights themselves.
TRAINED_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights"),
    *("params", "state"),
)
#: Containers inside each other that are looked through, and sets of weights that an error lists.
MOST_NESTED, LISTED = 6, 5


@dataclass(frozen=True)
class ChosenWeights:
    """The weights of a file that were taken.

    Attributes:
        state: Their tensors by name.
        key: Where they were in the file, such as "ema" or "model.student"; "" for a file that holds nothing else.
        others: Where other weights are that fit the model as well.
        unfit: Where averaged weights are that do not fit it.
    """

    state: StateDict
    key: str = ""
    others: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()

    def note(self, file: Path) -> str:
        """Return a sentence that says what was taken from `file`; "" where there was no choice."""
        if self.others:
            kind = " (a moving average)" if _is_averaged(self.key) else ""
            listed = " or ".join(f"--weights-key {key}" for key in self.others[:LISTED])
            return f"{file.name} holds {len(self.others) + 1} sets of weights: those under {self.key!r}{kind} are taken; {listed} takes others"
        if self.unfit:
            return f"the weights under {self.unfit[0]!r} of {file.name} do not fit the model: those under {self.key!r} are taken"
        return ""


def choose_state_dict(content: Any, file: Path, fits: Callable[[StateDict], bool], key: str | None = None) -> ChosenWeights:
    """Return the weights to load from what a file holds.

    Args:
        content: What was read from the file.
        file: The file, for errors.
        fits: Whether a set of weights is one of the model.
        key: Where the weights are, such as "ema", "model.student" or a prefix of names; None takes the averaged weights that fit
            the model, else those that were trained, else the only other ones that fit.

    Raises:
        InputError: If there are no weights, none under `key`, or several that could be meant.
    """
    found = _state_dicts(content)
    if key is not None:
        return ChosenWeights(_under(content, found, key, file, fits), key)
    if not found:
        keys = (
            ", ".join(repr(str(name))[:40] for name in list(content)[:5])
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise InputError(
            f"{file} holds no state dict, but {keys or 'nothing'}", "save module.state_dict(), not the module itself"
        )
    if len(found) == 1:
        return ChosenWeights(*next((state, path) for path, state in found.items()))
    fitting = [path for path in found if fits(found[path])]
    known = [path for path in fitting if _is_known(path)]
    if not known and len(fitting) > 1:
        raise InputError(
            f"{file} holds {len(fitting)} sets of these weights, such as those under {fitting[0]!r} and {fitting[1]!r}",
            f"say which one is meant, for instance --weights-key {fitting[0]}",
        )
    chosen = next(iter((*known, *fitting, *found)))
    unfit = [path for path in found if _is_averaged(path) and path not in fitting] if fitting else []
    return ChosenWeights(found[chosen], chosen, tuple(path for path in fitting if path != chosen), tuple(unfit))


def _state_dicts(content: Any) -> dict[str, StateDict]:
    """Return the sets of weights in `content` by their path: averaged ones first, then trained ones, then others."""
    if _is_state_dict(content):
        return {"": content}
    found = dict(_nested(content, 0))
    order = sorted(found, key=lambda path: (not _is_averaged(path), not _is_known(path)))
    return {path: found[path] for path in order}


def _nested(content: Any, depth: int) -> Sequence[tuple[str, StateDict]]:
    if not isinstance(content, Mapping) or depth == MOST_NESTED:
        return ()
    found: list[tuple[str, StateDict]] = []
    for name in dict.fromkeys((*AVERAGED_KEYS, *TRAINED_KEYS, *content)):
        part = content.get(name) if isinstance(name, str) else None
        if part is not None and _is_state_dict(part):
            found.append((name, part))
        elif name in AVERAGED_KEYS or name in TRAINED_KEYS:
            found += [(f"{name}.{path}", state) for path, state in _nested(part, depth + 1)]
    return found


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(hasattr(value, "shape") for value in content.values())


def _is_averaged(path: str) -> bool:
    return any(part in AVERAGED_KEYS for part in path.split("."))


def _is_known(path: str) -> bool:
    parts = path.split(".")
    return _is_averaged(path) or all(part in TRAINED_KEYS for part in parts)


def _under(content: Any, found: Mapping[str, StateDict], key: str, file: Path, fits: Callable[[StateDict], bool]) -> StateDict:
    """Return the weights under `key`: a path of `found`, of any containers, or a prefix of the names of one of `found`.

    Raises:
        InputError: If there are none.
    """
    if key in found:
        return found[key]
    part = _at(content, key)
    if isinstance(part, Mapping) and part:
        return choose_state_dict(part, file, fits).state
    prefixed = (
        {name.removeprefix(f"{key}."): value for name, value in state.items() if str(name).startswith(f"{key}.")}
        for state in found.values()
    )
    if (state := next(filter(None, prefixed), None)) is not None:
        return state
    firsts = {str(name).split(".")[0] for state in found.values() for name in state} if len(found) == 1 else set()
    names = [*(path for path in found if path), *(sorted(firsts) if "" in found else ())]
    raise InputError(
        f"--weights-key {key}: {file} holds no weights under this name", nearest(key, names or [str(each) for each in content])
    )


def _at(content: Any, path: str) -> Any:
    """Return what is at `path` of nested containers, whose keys may have dots themselves; None if nothing is."""
    if not isinstance(content, Mapping):
        return None
    if path in content:
        return content[path]
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:count])
        if head in content and (inner := _at(content[head], ".".join(parts[count:]))) is not None:
            return inner
    return None
