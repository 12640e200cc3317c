"""A file that `scripts/save_weights.py` writes is read by torch itself and fits torchvision's network strictly."""

import pytest

import flaxvid

torch = pytest.importorskip("torch")


def test_a_pth_file_is_torchs(torchvision_models, randomised, call_script, tmp_path):
    net = randomised(torchvision_models.resnet18(num_classes=7))
    model, variables = flaxvid.load_model("tsn_resnet18", net.state_dict())
    flaxvid.save(flaxvid.Trained(model, variables), tmp_path / "ours.safetensors")
    call_script("save_weights.py", tmp_path / "ours.safetensors", tmp_path / "out.pth", "--format", "torchvision")
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    randomised(net, seed=1)
    net.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())
