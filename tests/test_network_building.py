"""Networks built from their specs: of this library, timm, torchvision and user code."""

import sys

import pytest
import torch
from network_files import USER_CODE_WITH_IMPORTS
from torch import nn
from torchvision import models

from cktf.data import load_dataset
from cktf.errors import ModelError
from cktf.models import build_network, parse_network_spec
from cktf.models.network_building import drop_pretrained
from cktf.recipes import build_student

IMAGES = torch.rand(2, 3, 32, 32)


def build(text, num_classes):
    return build_network(parse_network_spec(text), num_classes)


@pytest.mark.parametrize(
    "line", ["timm:mobilenetv3_small_050", "torchvision:mobilenet_v3_small", "vgg8", "resnet8"]
)
def test_num_classes(line):
    built = build(line, 7)
    assert built.network.eval()(IMAGES).shape == (2, 7)
    assert built.mean is None


def test_user_code(user_code):
    assert build(f"{user_code}:small(width=6)", 5).network[0].out_channels == 6
    assert build(f"{user_code}:fixed", 5).network(IMAGES).shape == (
        2,
        3,
    )


@pytest.mark.parametrize("name", ["Net", "made", "typed", "late"])
def test_user_code_with_imports(tmp_path, monkeypatch, name):
    """Postponed annotations, assigned names, imports of neighboring files."""
    for module in ("blocks_beside", "late_beside"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text("from torch import nn\nLinear = nn.Linear\n")
    path = tmp_path / "net.py"
    path.write_text(USER_CODE_WITH_IMPORTS)
    paths = list(sys.path)
    network = build(f"{path}:{name}", 5).network
    assert network[1].out_features == (7 if name in ("made", "typed") else 5)
    assert sys.path == paths
    # Another file of the same name is another module.
    other = tmp_path / "other" / "net.py"
    other.parent.mkdir()
    other.write_text(USER_CODE_WITH_IMPORTS.replace("8", "9"))
    kept = sys.modules[network.origin]
    build(f"{other}:{name}", 5)
    assert sys.modules[network.origin] is kept


@pytest.mark.parametrize(
    ("name", "message"),
    [("number", "gives a int"), ("broken", "out of luck"), ("small(depth=3)", "depth")],
)
def test_errors_of_user_code_are_reported(user_code, name, message):
    with pytest.raises(ModelError, match=message):
        build(f"{user_code}:{name}", 5)


@pytest.mark.parametrize(
    ("name", "head"),
    [("squeezenet1_1", "classifier.1"), ("mobilenet_v3_small", "classifier.3")],
)
def test_pretrained_weights_but_for_the_classifier(monkeypatch, name, head):
    trained = models.get_model(name).state_dict()
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: trained)
    source = parse_network_spec(f"torchvision:{name}(pretrained=True)")
    assert build_network(source, None).network(IMAGES).shape == (2, 1000)
    network = build_network(source, 7).network.eval()
    assert network(IMAGES).shape == (2, 7)
    state = network.state_dict()
    kept = {k for k in state if torch.equal(state[k], trained[k])}
    assert state.keys() - kept == {f"{head}.weight", f"{head}.bias"}


@pytest.mark.parametrize(("weights", "size"), [("IMAGENET1K_V1", 240), ("IMAGENET1K_V2", 240)])
def test_weights_of_torchvision_by_name(monkeypatch, weights, size):
    """Those that the spec names are loaded, with their own transforms."""
    trained, loaded = models.get_model("efficientnet_b1").state_dict(), []
    monkeypatch.setattr(
        models.WeightsEnum, "get_state_dict", lambda self, **_: loaded.append(self) or trained
    )
    built = build(f"torchvision:efficientnet_b1(weights='{weights}')", 7)
    assert [enum.name for enum in loaded] == [weights]
    assert built.mean[0] == 0.485
    assert built.size == loaded[0].transforms().crop_size[0] == size
    assert built.network.classifier[1].out_features == 7
    spec = drop_pretrained(parse_network_spec(f"torchvision:efficientnet_b1(weights={weights})"))
    assert spec.arguments == {}
    assert build("torchvision:resnet18(weights=None)", 7).mean is None


@pytest.mark.parametrize(
    ("line", "url"),
    [("torchvision:resnet18(weights=DEFAULT)",
      r"https://download.pytorch.org/models/(resnet18-f37072fd\.pth).*checkpoints/\1"),
     ("timm:resnet10t(pretrained=True)",
      r"https://huggingface.co/timm/resnet10t.c3_in1k.*--teacher-weights model.safetensors")],
)  # fmt: skip
def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path, line, url):
    """The message says where they are, and where to put them."""
    timm = pytest.importorskip("timm")

    def refuse(*args, **kwargs):
        raise ConnectionError("no network in tests")

    def refuse_later(*args, **kwargs):
        try:
            refuse()
        except ConnectionError as error:
            raise RuntimeError("not in the cache") from error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr(timm, "create_model", refuse_later)
    with pytest.raises(ModelError, match=f"could not be downloaded .*{url}"):
        build(line, 10)


def test_pretrained_vit_has_the_size_of_its_weights():
    found = drop_pretrained(parse_network_spec("torchvision:vit_h_14(pretrained=True)"))
    assert found.arguments == {"image_size": 518}
    line = "torchvision:vit_h_14(weights=IMAGENET1K_SWAG_LINEAR_V1)"
    assert drop_pretrained(parse_network_spec(line)).arguments == {"image_size": 224}


@pytest.mark.parametrize(
    ("name", "mean", "size"),
    [("resnet18", 0.485, 224), ("efficientnet_b1", 0.485, 240), ("inception_v3", 0.485, 299),
     ("swin_v2_t", 0.485, 256), ("efficientnet_v2_l", 0.5, 480)],
)  # fmt: skip
def test_pretrained_networks_state_mean_and_size(monkeypatch, name, mean, size):
    """By the tables of torchvision's documentation."""
    monkeypatch.setattr(models, "get_model", lambda *_, **__: nn.Identity())
    built = build(f"torchvision:{name}(pretrained=True)", None)
    assert (built.mean[0], built.size) == (mean, size)
    assert built.std[0] == (0.5 if mean == 0.5 else 0.229)
    assert build(f"torchvision:{name}", 7).mean is None
    assert build(f"torchvision:{name}(pretrained=True)@64", 7).size == 64


def test_networks_of_a_fixed_size_resize_images():
    data = load_dataset("fashion-mini", None, "test")
    vit = build_student("timm:test_vit", data)
    assert vit.size == 160
    smaller = build_student("timm:test_vit@64", data)
    assert smaller.size == 64
    assert smaller.eval()(IMAGES).shape == (2, 10)
    assert build_student("timm:test_vit@64", data).network.patch_embed.img_size == (64, 64)
    assert build_student("resnet8@48", data).size == 48
