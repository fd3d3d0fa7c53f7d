"""Loads state dicts from safetensors and PyTorch files, as training scripts and wrappers save them."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError
from relu_deploy.storage.json_files import parse_json
from relu_deploy.zoo.checkpoints import ChosenWeights, StateDict, choose_state_dict

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["load_weights"]

#: Parts that wrappers put into names: torch.compile, activation checkpointing, fully sharded training, Fabric, DataParallel.
WRAPPERS = frozenset(["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "module"])
#: Kept beside averaged weights by `torch.optim.swa_utils.AveragedModel`.
AVERAGED = "n_averaged"
#: End of the name of a file that lists the files in which large weights are stored.
INDEX = ".index.json"
#: Bytes of the largest header of a safetensors file, the format's own limit.
MAX_HEADER = 100_000_000
#: How much larger than the file the unpacked weights may be: they are stored without compression.
MAX_RATIO = 4


def load_weights(module: nn.Module, file: Path, name: str, key: str | None = None) -> ChosenWeights:
    """Load the state dict in `file` into `module`, strictly; PyTorch's files are read with `weights_only=True`.

    Wrappers' prefixes are removed, tied weights may be stored once, and other floating types are converted. Of a module that
    contains the model, as one that trains it does, only the model's weights are read.

    Args:
        module: The model.
        file: A `.safetensors` or PyTorch file.
        name: The model's name, for errors.
        key: Where the weights are in the file, such as "ema"; see `checkpoints.choose_state_dict`.

    Returns:
        Which of the file's weights were taken.

    Raises:
        InputError: If the file cannot be read safely, or names the first missing, unexpected or misshapen key, or the first
            that has NaN, infinite or complex values.
    """
    own = module.state_dict()

    def matched(state: StateDict) -> dict[str, Any]:
        return _with_tied(_without_prefixes(state, own, file), module)

    def fits(state: StateDict) -> bool:
        try:
            given = matched(state)
        except InputError:
            return False
        needed = [each for each in own if not _is_count(each)]
        return all(each in own for each in given) and all(
            each in given and given[each].shape == own[each].shape for each in needed
        )

    chosen = choose_state_dict(_read(file), file, fits, key)
    state = matched(chosen.state)
    missing = [each for each in own if each not in state and not _is_count(each)]
    unexpected = [each for each in state if each not in own]
    if missing or unexpected:
        first = [f"{kind} {keys[0]!r}" for kind, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise InputError(
            f"{file} does not hold the weights of {name}: {len(missing)} keys are missing and {len(unexpected)} unexpected; "
            f"first {', first '.join(first)}",
            "name the architecture that the file was saved from; relu-deploy zoo lists them",
        )
    for each, value in own.items():
        if each in state:
            _check_tensor(file, name, each, state[each], value)
    module.load_state_dict(state, strict=not any(_is_count(each) for each in own.keys() - state.keys()))
    return chosen


def _is_count(name: str) -> bool:
    """Return whether `name` is the number of batches that a batch norm has seen, which older files do not have."""
    return name.endswith("num_batches_tracked")


def _check_tensor(file: Path, name: str, key: str, given: torch.Tensor, own: torch.Tensor) -> None:
    if given.shape != own.shape:
        raise InputError(
            f"{file}: {key!r} has shape {tuple(given.shape)}, but {name} needs {tuple(own.shape)}",
            "give the number of classes that the weights were trained for with --arg num_classes=N",
        )
    hint = "save the state dict of the trained model again"
    if given.is_meta:
        raise InputError(f"{file}: {key!r} is on the meta device: the file holds its shape, but no values", hint)
    if given.layout is not own.layout or given.is_quantized:
        kind = "quantized" if given.is_quantized else str(given.layout).removeprefix("torch.").replace("_", " ")
        raise InputError(f"{file}: {key!r} is a {kind} tensor, and {name} has dense weights", hint)
    if given.is_complex() and not own.is_complex():
        raise InputError(f"{file}: {key!r} is complex, and {name} has real weights", hint)
    if own.is_floating_point() and not given.is_floating_point() and not given.is_complex():
        kind = str(given.dtype).removeprefix("torch.")
        raise InputError(f"{file}: {key!r} is {kind}, and {name} has floating-point weights", hint)
    # Not every type has this test; float32 holds all values of smaller ones.
    if given.is_floating_point() and not bool((given.float() if given.element_size() < 2 else given).isfinite().all()):
        raise InputError(f"{file}: {key!r} has values that are NaN or infinite", "use weights of a training that did not diverge")


def _without_prefixes(state: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the state dict without what wrappers put into the names, and without what they put before every name."""
    state = {str(key): value for key, value in state.items() if key != AVERAGED or key in own}
    unwrapped = {_without_wrappers(key): value for key, value in state.items()}
    candidates = []
    for named in (state, unwrapped) if len(unwrapped) == len(state) else (state,):
        parts = next(iter(named), "").split(".")
        prefixes = [".".join((*parts[:count], "")) for count in range(1, len(parts))]
        shared = ["", *(prefix for prefix in prefixes if all(key.startswith(prefix) for key in named))]
        candidates += [{key.removeprefix(prefix): value for key, value in named.items()} for prefix in shared]
    # A model may have such a name itself: the least removed of those that fit best.
    best = max(candidates, key=lambda each: sum(key in own for key in each))
    return best if best.keys() >= own.keys() else _part_of_larger(candidates, own, file) or best


def _part_of_larger(candidates: Sequence[Mapping[str, Any]], own: Mapping[str, Any], file: Path) -> dict[str, Any] | None:
    """Return the model's weights among those of a larger module that trains it, without their prefix; None if there are none.

    Raises:
        InputError: If several parts hold weights of all the model's names, such as a teacher and a student.
    """
    needed = [key for key in own if not _is_count(key)]
    for named in candidates if needed else ():
        prefixes = [key.removesuffix(needed[0]) for key in named if key.endswith(f".{needed[0]}")]
        whole = [prefix for prefix in prefixes if all(prefix + key in named for key in needed)]
        if len(whole) > 1:
            raise InputError(
                f"{file} holds {len(whole)} sets of these weights, such as those under {whole[0]!r} and {whole[1]!r}",
                f"say which one is meant, for instance --weights-key {whole[0][:-1]}",
            )
        if whole:
            return {key.removeprefix(whole[0]): value for key, value in named.items() if key.startswith(whole[0])}
    return None


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _with_tied(state: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """Add the names that share a tensor with one in `state`: safetensors stores each tensor once."""
    names: dict[int, list[str]] = {}
    for key, value in module.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(key)
    for same in names.values():
        stored = [key for key in same if key in state]
        if stored:
            state |= {key: state[stored[0]] for key in same if key not in state}
    return state


def _read(file: Path) -> Any:
    """Return what `file` holds: a state dict, or containers with state dicts in them. Raises InputError for other files."""
    if not file.is_file():
        raise InputError(f"there is no weights file {file}", "give a .safetensors or .pth file with --weights")
    hint = "save a plain state dict, for instance with safetensors.torch.save_file(module.state_dict(), FILE)"
    if file.stat().st_size == 0:
        raise InputError(f"{file} is not a weights file: it is empty", hint)
    try:
        return _read_shards(file) if file.name.endswith(INDEX) else _read_file(file)
    except InputError:
        raise
    except Exception as error:  # pickle, zip, safetensors and torch raise a dozen types for a file that is not weights
        lines = str(error).splitlines() or [type(error).__name__]
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds a {refused[1]}, which could run code" if refused else lines[0].split(". ")[0]
        raise InputError(f"{file} is not a weights file that can be read safely: {reason}", hint) from error


def _read_file(file: Path) -> Any:
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pytorch(file)


def _read_shards(index: Path) -> dict[str, Any]:
    """Return the tensors of the files beside `index` that it lists."""
    listed = parse_json(index.read_bytes())
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise InputError(f"{index} has no 'weight_map' of files beside it", "give the index that was saved with the weights")
    if missing := [name for name in places.values() if not (index.parent / name).is_file()]:
        raise InputError(f"{index} lists {missing[0]}, which is not beside it", "keep all of its files in one folder")
    state: dict[str, Any] = {}
    for name in dict.fromkeys(places.values()):
        state |= _read_file(index.parent / name)
    return state


def _read_safetensors(file: Path) -> Any:
    from safetensors.torch import load_file

    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_HEADER, file.stat().st_size):
            raise InputError(f"{file} is not a weights file: its header of {length} bytes is too long", "save it again")
        # The format forbids two tensors of one name; the library takes one of them.
        parse_json(stream.read(length))
    return load_file(file)


def _read_pytorch(file: Path) -> Any:
    import argparse

    import torch

    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_RATIO * file.stat().st_size + 2**20:
            raise InputError(
                f"{file} unpacks to {math.ceil(unpacked / 2**20)} MiB, far more than its size", "torch.save does not compress"
            )
    # Training scripts store their options beside the weights; a namespace has attributes and no code.
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)
