"""What can be exported: a zoo model, any callable that gives a module, an exported program, a finished ONNX file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError, UsageError, missing_package, nearest
from relu_deploy.exporting.options import PUBLISHED, ExportOptions
from relu_deploy.storage.files import sha256
from relu_deploy.zoo.model_recipe import ModelRecipe
from relu_deploy.zoo.published import published_weights
from relu_deploy.zoo.recipes import build, recipe, recipes, weights_file
from relu_deploy.zoo.weights_files import load_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Loaded", "import_torch", "load_source", "reason_of", "unwrapped"]


@dataclass(frozen=True)
class Loaded:
    """A source, loaded.

    Attributes:
        module: None for an ONNX file.
        kind: "zoo", "callable", "module", "pt2" or "onnx".
        spec: As it was given; of a file the name.
        weights: Name and sha256 of the weights file, and which of its weights were taken where it holds several.
        recipe: What the zoo knows of the model.
        program: For a `.pt2` file, the program whose module `module` is.
        notes: What was chosen among several possibilities, one sentence each.
    """

    module: nn.Module | None
    kind: str
    spec: str
    weights: dict[str, str] | None = None
    recipe: ModelRecipe | None = None
    program: torch.export.ExportedProgram | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return a name for the model: the recipe's, the file's, or the callable's."""
        if self.recipe:
            return self.recipe.name
        return Path(self.spec).stem if self.kind in ("pt2", "onnx") else self.spec.split(":")[-1]


def load_source(spec: str, options: ExportOptions) -> Loaded:
    """Return what `spec` names: a zoo model, a callable's module, an exported program, or an ONNX file.

    Raises:
        InputError: If the file or module cannot be loaded.
        UsageError: If `spec` names nothing that can be exported.
    """
    path, weights, arguments = Path(spec), options.weights, options.arguments or {}
    if path.suffix in (".onnx", ".pt2"):
        if not path.is_file():
            raise InputError(f"there is no file {spec}", "check the path")
        return Loaded(None, "onnx", path.name) if path.suffix == ".onnx" else _load_pt2(path, options.trust_source)
    if ":" in spec:
        if weights == PUBLISHED:
            raise UsageError(
                f"--weights published is for the models of the zoo, and {spec} is a callable",
                "let the callable load its weights, for instance with --arg weights=DEFAULT, or give a file with --weights",
            )
        return _with_weights(Loaded(_call(spec, arguments), "callable", spec), weights, options)
    if path.is_dir() or path.suffix in (".pth", ".safetensors", ".pt"):
        raise UsageError(
            f"{spec} is not something that can be exported by itself",
            "give the architecture, and the file with --weights: relu-deploy export resnet50 --weights FILE",
        )
    if weights == PUBLISHED:
        weights = published_weights(spec, options.weights_url) if spec in recipes() else None
    if spec not in recipes():
        raise UsageError(
            f"there is no zoo model called {spec!r}", f"{nearest(spec, recipes())} other models: package.module:callable"
        )
    known = recipe(spec)
    # A changed architecture (say, another number of classes) cannot hold the zoo's own weights.
    if weights is None and known.weights is not None and not arguments:
        weights = weights_file(known)
    module = build(spec, None, seed=options.seed, **arguments)
    return _with_weights(Loaded(module, "zoo", spec, recipe=known), weights, options)


def _with_weights(loaded: Loaded, weights: str | os.PathLike[str] | None, options: ExportOptions) -> Loaded:
    """Return `loaded` with the weights of a file in its module; unchanged without a file."""
    if weights is None:
        return loaded
    file = Path(weights)
    assert loaded.module is not None
    chosen = load_weights(loaded.module, file, loaded.spec, options.weights_key)
    facts = {"name": file.name, "sha256": sha256(file), **({"key": chosen.key} if chosen.key else {})}
    note = chosen.note(file)
    return replace(loaded, weights=facts, notes=(note,) if note and options.weights_key is None else ())


def _load_pt2(path: Path, trust: bool) -> Loaded:
    import_torch()
    from relu_deploy.backends.torch.program_file import load_program

    program = load_program(path, trust=trust)
    return Loaded(program.module(check_guards=False), "pt2", path.name, program=program)


def _call(spec: str, arguments: Mapping[str, Any]) -> nn.Module:
    torch = import_torch()
    module_name, _, attribute = spec.partition(":")
    # As `python -m` does: a model in the current folder can be named without installing it.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        target: Any = importlib.import_module(module_name)
        if module_name == "timm" and not hasattr(target, attribute):
            # timm's models have names of their own: timm:resnet50d
            target = partial(target.create_model, attribute)
        else:
            for part in attribute.split("."):
                target = getattr(target, part)
    except ModuleNotFoundError as error:
        raise InputError(
            f"cannot import {module_name!r}: {error}", f"install it, or run from the folder that holds {module_name}.py"
        ) from error
    except AttributeError as error:
        raise InputError(f"{module_name!r} has nothing called {attribute!r}", "write package.module:callable") from error
    except Exception as error:  # the user's module may raise anything
        other_builds = "torchvision::" in str(error)
        raise InputError(
            f"importing {module_name!r} failed: {type(error).__name__}: {error}",
            "torch and torchvision are of different builds: install both in one command, from the same index"
            if other_builds
            else "import it in Python to see why",
        ) from error
    try:
        module = target if isinstance(target, torch.nn.Module) else target(**arguments)
    except Exception as error:  # the user's callable may raise anything
        raise InputError(
            f"calling {spec} failed: {type(error).__name__}: {error}", "give its arguments with --arg key=value"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"{spec} gave a {type(module).__name__}, not a torch.nn.Module", "name a callable that returns the model"
        )
    return unwrapped(module)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model inside what torch.compile, data parallel training and weight averaging make of it."""
    torch = import_torch()
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(module, (*parallel, torch.optim.swa_utils.AveragedModel)):
            module = module.module
        elif "_orig_mod" in module._modules:
            module = module._modules["_orig_mod"]
        else:
            return module


def import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "torch") from error
    return torch


def reason_of(error: BaseException) -> str:
    """Return the first line of the innermost error, which says what happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
