"""Every architecture is torchvision's to the key, the shape and the number."""

import gzip
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from relu_deploy.nn import ARCHITECTURES, architecture  # noqa: E402
from relu_deploy.zoo import ARCHITECTURES as RECIPES  # noqa: E402
from relu_deploy.zoo import build, recipe, recipes  # noqa: E402

from .torchvision_import import torchvision  # noqa: E402

FACTS = json.loads(gzip.decompress((Path(__file__).parents[1] / "data" / "torchvision_state_dicts.json.gz").read_bytes()))[
    "models"
]
CLASSIFIERS = [entry.name for entry in RECIPES if entry.task == "classification"]
DETECTORS = [entry.name for entry in RECIPES if entry.task == "detection"]
SIZES = {"ssd300_vgg16": 300, "fcos_resnet50_fpn": 160, "retinanet_resnet50_fpn": 160}


def torchvision_model(name):
    """Return torchvision's model with random weights and batch norms that do something."""
    models = torchvision().models
    if name in DETECTORS:
        model = models.detection.__dict__[name](weights=None, weights_backbone=None)
    else:
        model = models.get_model(name, weights=None, **({"init_weights": False} if name.startswith("vgg") else {}))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


@pytest.mark.parametrize("name", [entry.name for entry in RECIPES])
def test_state_dict_has_torchvisions_keys_dtypes_and_shapes_in_its_order(name):
    with torch.device("meta"):
        module = architecture(name)()
    ours = {key: [str(value.dtype).removeprefix("torch."), *value.shape] for key, value in module.state_dict().items()}
    assert list(ours.items()) == list(FACTS[name]["state_dict"].items())


@pytest.mark.parametrize("name", list(recipes()))
def test_the_zoo_states_the_true_parameter_count_and_activation(name):
    known = recipe(name)
    with torch.device("meta"):
        module = build(name)
    assert sum(parameter.numel() for parameter in module.parameters()) == known.parameters
    kinds = {type(part).__name__ for part in module.modules()} & {"ReLU", "ReLU6", "SiLU", "GELU", "LeakyReLU", "Hardswish"}
    assert kinds == {known.activation}


def test_every_architecture_has_a_recipe_and_every_recipe_an_architecture():
    assert {entry.name for entry in RECIPES} <= set(ARCHITECTURES)
    assert set(ARCHITECTURES) <= set(recipes())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_torchvisions_logits_with_its_weights(name):
    theirs = torchvision_model(name)
    ours = build(name).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.abs().max() > 0


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_give_torchvisions_head_maps_with_its_weights(name):
    theirs = torchvision_model(name)
    ours = build(name).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(1, 3, SIZES[name], SIZES[name], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = ours(images)
        heads = theirs.head(list(theirs.backbone(images).values()))
    expected = [heads[key] for key in ("cls_logits", "bbox_regression", "bbox_ctrness") if key in heads]
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
def test_decoding_and_suppression_find_what_torchvision_finds(name):
    # Head maps drawn at random, and a threshold so high that torchvision's caps (best 1000 a level, 400 a class) do not bite.
    size = SIZES[name]
    theirs = torchvision_model(name)
    ours = build(name).eval()
    image = torch.zeros(1, 3, size, size)
    draw = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        shapes = [one.shape for one in ours(image)]
        maps = [1.5 * torch.randn(shape, generator=draw) - 3 * (index == 0) for index, shape in enumerate(shapes)]
        maps[1] = maps[1].abs() if name.startswith("fcos") else 0.3 * maps[1]
        levels = list(theirs.backbone(image).values())
        pictures = torchvision().models.detection.image_list.ImageList(image, [(size, size)])
        anchors = theirs.anchor_generator(pictures, levels)
        heads = dict(zip(("cls_logits", "bbox_regression", "bbox_ctrness"), maps, strict=False))
        theirs.score_thresh = float(torch.quantile(_scores(name, maps).flatten()[:1_000_000], 0.9995))
        if name == "ssd300_vgg16":
            expected = theirs.postprocess_detections(heads, anchors, [(size, size)])[0]
        else:
            counts = [level.shape[2] * level.shape[3] for level in levels]
            counts = [count * maps[0].shape[1] // sum(counts) for count in counts]
            split = {key: list(value.split(counts, 1)) for key, value in heads.items()}
            expected = theirs.postprocess_detections(split, [list(anchors[0].split(counts))], [(size, size)])[0]
        boxes, scores = ours.decoder(size, size)(*maps)
    from relu_deploy.detections import postprocess

    limit = theirs.detections_per_img
    found = postprocess(
        boxes.numpy(), scores.numpy(), score_threshold=theirs.score_thresh, iou_threshold=theirs.nms_thresh, max_detections=limit
    )[0]
    assert 5 < len(found["scores"]) <= limit
    torch.testing.assert_close(torch.from_numpy(found["scores"]), expected["scores"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(found["boxes"]), expected["boxes"], rtol=1e-4, atol=1e-2)
    assert (torch.from_numpy(found["labels"]) == expected["labels"]).all()


def _scores(name, maps):
    if name == "ssd300_vgg16":
        return maps[0].softmax(-1)[..., 1:]
    scores = maps[0].sigmoid()
    return (scores * maps[2].sigmoid()).sqrt() if len(maps) == 3 else scores


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_randomness_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (build("squeezenet1_1", seed=seed).features[0].weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
