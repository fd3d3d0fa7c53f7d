"""Weights load from files as people have them, and are refused in words where they cannot be."""

import argparse
import json
import pathlib
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'relu-deploy[torch]'")

from torch import nn  # noqa: E402

from relu_deploy.bundle import Bundle  # noqa: E402
from relu_deploy.errors import InputError  # noqa: E402
from relu_deploy.zoo.weights_files import load_weights  # noqa: E402


class Tied(nn.Module):
    """An autoencoder whose decoder uses the encoder's weight."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(torch.relu(self.encoder(x)))


class Twice(nn.Module):
    """A module that is registered under two names."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Linear(4, 4)
        self.model = nn.Sequential(self.backbone, nn.ReLU())

    def forward(self, x):
        return self.model(x)


def loaded(kind, content, folder, name="w.pth"):
    """Return what a module with other weights answers once the file is loaded, and what the saved one answers."""
    if content is not None:
        torch.save(content, folder / name)
    module = kind(seed=2)
    load_weights(module, folder / name, "net")
    return module(torch.ones(1, 4))


def test_tied_weights_that_safetensors_stored_once_are_loaded(tmp_path):
    from safetensors.torch import save_model

    for kind in (Tied, Twice):
        save_model(kind(seed=1), tmp_path / "w.safetensors")
        answer = loaded(kind, None, tmp_path, "w.safetensors")
        assert torch.equal(answer, kind(seed=1)(torch.ones(1, 4)))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model.", "net.", "_forward_module."])
def test_the_prefix_of_a_wrapper_is_removed(tmp_path, prefix):
    state = {prefix + key: value for key, value in Tied(seed=1).state_dict().items()}
    assert torch.equal(loaded(Tied, state, tmp_path), Tied(seed=1)(torch.ones(1, 4)))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module"])
def test_a_wrapper_around_a_part_of_the_model_is_removed(tmp_path, wrapper):
    state = {key.replace("encoder.", f"encoder.{wrapper}."): value for key, value in Tied(seed=1).state_dict().items()}
    assert torch.equal(loaded(Tied, state, tmp_path), Tied(seed=1)(torch.ones(1, 4)))


def test_a_prefix_that_is_the_models_own_stays(tmp_path):
    state = nn.ModuleDict({"model": nn.Linear(4, 4), "module": nn.Linear(4, 4)}).state_dict()
    torch.save(state, tmp_path / "w.pth")
    module = nn.ModuleDict({"model": nn.Linear(4, 4), "module": nn.Linear(4, 4)})
    load_weights(module, tmp_path / "w.pth", "net")
    assert torch.equal(module["module"].bias, state["module.bias"])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "ema", "params_ema", "params"])
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, key):
    module = Tied(seed=1)
    checkpoint = {"epoch": 3, key: module.state_dict(), "optimizer": torch.optim.Adam(module.parameters()).state_dict()}
    assert torch.equal(loaded(Tied, checkpoint, tmp_path), Tied(seed=1)(torch.ones(1, 4)))


def test_a_state_dict_inside_two_dictionaries_is_found(tmp_path):
    checkpoint = {"ema": {"decay": 0.99, "state_dict": Tied(seed=1).state_dict()}, "epoch": 3}
    assert torch.equal(loaded(Tied, checkpoint, tmp_path), Tied(seed=1)(torch.ones(1, 4)))


def test_averaged_weights_are_loaded_without_their_count(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(Tied(seed=1))
    assert torch.equal(loaded(Tied, averaged.state_dict(), tmp_path), Tied(seed=1)(torch.ones(1, 4)))


@pytest.mark.parametrize("prefix", ["model.", "net.backbone.", "model._orig_mod."])
def test_the_weights_of_a_module_that_trains_the_model_are_read_without_what_else_it_has(tmp_path, prefix):
    state = {prefix + key: value for key, value in Tied(seed=1).state_dict().items()}
    training = {"state_dict": {**state, "loss.weight": torch.ones(3), "metric.counts": torch.zeros(2, 2)}}
    assert torch.equal(loaded(Tied, training, tmp_path), Tied(seed=1)(torch.ones(1, 4)))


def test_two_sets_of_the_weights_are_refused_because_one_must_be_chosen(tmp_path):
    student, teacher = Tied(seed=1).state_dict(), Tied(seed=4).state_dict()
    both = {f"student.{key}": value for key, value in student.items()} | {
        f"teacher.{key}": value for key, value in teacher.items()
    }
    with pytest.raises(InputError, match=r"2 sets of these weights, such as those under 'student\.' and 'teacher\.'"):
        loaded(Tied, {**both, "step": torch.tensor(3)}, tmp_path)


def test_the_options_of_a_training_script_beside_the_weights_are_no_obstacle(tmp_path):
    checkpoint = {"model": Tied(seed=1).state_dict(), "epoch": 3, "args": argparse.Namespace(lr=0.1, amp=True)}
    assert torch.equal(loaded(Tied, checkpoint, tmp_path), Tied(seed=1)(torch.ones(1, 4)))


def test_what_could_run_code_in_a_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"it holds a pathlib\.\w+, which could run code"):
        loaded(Tied, {"model": Tied(seed=1).state_dict(), "folder": pathlib.PurePosixPath("/data")}, tmp_path)


def test_weights_in_several_files_are_read_by_their_index(tmp_path):
    from safetensors.torch import save_file

    state = Twice(seed=1).state_dict()
    parts = {
        "a.safetensors": {"backbone.weight": state["backbone.weight"]},
        "b.safetensors": {"backbone.bias": state["backbone.bias"]},
    }
    for name, part in parts.items():
        save_file(part, tmp_path / name)
    places = {key: name for name, part in parts.items() for key in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    answer = loaded(Twice, None, tmp_path, "model.safetensors.index.json")
    assert torch.equal(answer, Twice(seed=1)(torch.ones(1, 4)))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors, which is not beside it"):
        loaded(Twice, None, tmp_path, "model.safetensors.index.json")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(InputError, match="no 'weight_map' of files beside it"):
        loaded(Twice, None, tmp_path, "model.safetensors.index.json")


def test_half_precision_weights_are_widened_exactly(tmp_path):
    state = {key: value.half() for key, value in Tied(seed=1).state_dict().items()}
    expected = Tied(seed=3)
    expected.load_state_dict({key: value.float() for key, value in state.items()})
    assert torch.equal(loaded(Tied, state, tmp_path), expected(torch.ones(1, 4)))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.full((4,), float("nan")), "NaN or infinite"),
        (torch.full((4,), float("inf")), "NaN or infinite"),
        (torch.ones(4, dtype=torch.complex64), "is complex"),
        (torch.empty(4, device="meta"), "meta device"),
        (torch.ones(4).to_sparse(), "is a sparse coo tensor"),
        (torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "is a quantized tensor"),
        (torch.ones(4, dtype=torch.int64), "is int64"),
        (torch.ones(4, dtype=torch.bool), "is bool"),
        (torch.full((4,), float("nan")).to(torch.float8_e4m3fn), "NaN or infinite"),
    ],
)
def test_weights_without_usable_values_are_refused_with_their_name(tmp_path, value, words):
    with pytest.raises(InputError, match=words) as raised:
        loaded(Tied, Tied(seed=1).state_dict() | {"encoder.bias": value}, tmp_path)
    assert "encoder.bias" in raised.value.message


def test_a_file_that_holds_something_else_says_what(tmp_path):
    with pytest.raises(InputError, match="'epoch', 'optimizer'"):
        loaded(Tied, {"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="it is empty"):
        loaded(Tied, None, tmp_path, name)


def test_a_safetensors_file_with_a_name_twice_or_a_header_without_end_is_refused(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "w.safetensors"
    save_file({key: value for key, value in Tied(seed=1).state_dict().items() if key != "decoder.weight"}, file)
    content = file.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    names = json.loads(header)
    first = next(name for name in names if name != "__metadata__")
    twice = header.rstrip()[:-1] + b"," + json.dumps({first: names[first]}).encode()[1:]
    file.write_bytes(len(twice).to_bytes(8, "little") + twice + content[8 + len(header) :])
    with pytest.raises(InputError, match="twice"):
        loaded(Tied, None, tmp_path, file.name)
    file.write_bytes((2**60).to_bytes(8, "little") + content[8:])
    with pytest.raises(InputError, match="too long"):
        loaded(Tied, None, tmp_path, file.name)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_before_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data/0", bytes(64 * 2**20))
    with pytest.raises(InputError, match="unpacks to 64 MiB"):
        loaded(Tied, None, tmp_path)


def checkpoint_of(**seeds):
    return {"epoch": 3, **{key: Tied(seed=seed).state_dict() for key, seed in seeds.items()}}


def taken(content, folder, key=None):
    """Return the seed of the weights that are loaded from a checkpoint, and what is known about the choice."""
    torch.save(content, folder / "w.pth")
    module = Tied(seed=9)
    chosen = load_weights(module, folder / "w.pth", "net", key)
    seed = next(seed for seed in range(1, 10) if torch.equal(module.encoder.weight, Tied(seed=seed).encoder.weight))
    return seed, chosen


@pytest.mark.parametrize(
    ("trained", "averaged"),
    [("model", "ema"), ("model", "model_ema"), ("state_dict", "state_dict_ema"), ("params", "params_ema"), ("net", "swa_model")],
)
def test_of_trained_and_averaged_weights_the_averaged_ones_are_taken_and_the_choice_is_said(tmp_path, trained, averaged):
    content = checkpoint_of(**{trained: 1, averaged: 2})
    seed, chosen = taken(content, tmp_path)
    assert (seed, chosen.key, chosen.others) == (2, averaged, (trained,))
    note = chosen.note(tmp_path / "w.pth")
    assert note == (
        f"w.pth holds 2 sets of weights: those under {averaged!r} (a moving average) are taken; --weights-key {trained} takes others"
    )
    for key, expected in ((trained, 1), (averaged, 2)):
        assert taken(content, tmp_path, key)[0] == expected


def test_weights_that_are_the_only_ones_need_no_note(tmp_path):
    for content in (checkpoint_of(ema=1), checkpoint_of(generator=1), Tied(seed=1).state_dict()):
        seed, chosen = taken(content, tmp_path)
        assert (seed, chosen.note(tmp_path / "w.pth")) == (1, "")


def test_averaged_weights_that_are_not_of_the_model_are_left_and_that_is_said(tmp_path):
    content = {**checkpoint_of(model=1), "ema": {"encoder.weight": torch.ones(4, 4)}}
    seed, chosen = taken(content, tmp_path)
    assert (seed, chosen.key) == (1, "model")
    assert (
        chosen.note(tmp_path / "w.pth") == "the weights under 'ema' of w.pth do not fit the model: those under 'model' are taken"
    )
    with pytest.raises(InputError, match="2 keys are missing"):
        taken(content, tmp_path, "ema")


def test_of_several_networks_the_one_that_fits_is_taken(tmp_path):
    content = {"generator": Twice(seed=1).state_dict(), "discriminator": Tied(seed=2).state_dict()}
    assert taken(content, tmp_path)[0] == 2


def test_of_equal_networks_one_must_be_named(tmp_path):
    content = checkpoint_of(student=1, teacher=2)
    with pytest.raises(InputError, match="2 sets of these weights, such as those under 'student' and 'teacher'") as refused:
        taken(content, tmp_path)
    assert "--weights-key student" in refused.value.hint
    assert taken(content, tmp_path, "teacher")[0] == 2


@pytest.mark.parametrize("outer", ["", "state_dict", "model"])
def test_a_part_of_the_names_is_a_key_too(tmp_path, outer):
    names = {f"student.{name}": value for name, value in Tied(seed=1).state_dict().items()}
    names |= {f"teacher.{name}": value for name, value in Tied(seed=2).state_dict().items()}
    content = {outer: names} if outer else names
    assert taken(content, tmp_path, "student")[0] == 1
    assert taken(content, tmp_path, "teacher")[0] == 2


def test_weights_deep_inside_are_named_by_their_path(tmp_path):
    content = {
        "model": {"a": Tied(seed=1).state_dict(), "b": Tied(seed=2).state_dict()},
        "training": {"ema.x": checkpoint_of(net=3)},
    }
    assert taken(content, tmp_path, "model.b")[0] == 2
    assert taken(content, tmp_path, "training.ema.x")[0] == 3


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"--weights-key emma: .*w\.pth holds no weights under this name") as refused:
        taken(checkpoint_of(model=1, ema=2), tmp_path, "emma")
    assert refused.value.hint == "did you mean 'ema'?"


def test_export_says_which_weights_of_a_checkpoint_it_took_and_takes_others_by_name(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU())\n"
    )
    states = {
        key: {"0.weight": torch.full((1, 2), value), "0.bias": torch.zeros(1)} for key, value in (("model", 1.0), ("ema", 3.0))
    }
    torch.save({"epoch": 1, **states}, tmp_path / "last.pth")
    given = ["export", "mine:net", "--input", "x=1x2", "--weights", "last.pth", "--json", "-"]
    for options, key, factor in (([], "ema", 3), (["--weights-key", "model"], "model", 1)):
        made = command(*given, "-o", f"{key}.rdb", *options)
        assert made.code == 0, made.stderr
        assert ("note: mine:net: last.pth holds 2 sets of weights: those under 'ema'" in made.stderr) == (key == "ema")
        assert made.json["weights"]["key"] == key
        assert len(made.json["notes"]) == (key == "ema")
        predicted = Bundle.open(tmp_path / f"{key}.rdb").session("onnxruntime-cpu").run({"x": np.ones((1, 2), np.float32)})
        assert predicted["y"].tolist() == [[2 * factor]]
    refused = command(*given, "-o", "no.rdb", "--weights-key", "mdl")
    assert refused.code == 2
    assert "did you mean 'model'?" in refused.stderr
    assert command("export", "mine:net", "--input", "x=1x2", "--weights-key", "ema", "-o", "no.rdb").code == 2
