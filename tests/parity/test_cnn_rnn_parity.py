"""A bi-directional LSTM or GRU of torch over torchvision's ResNet, on clips of several lengths, against ours."""

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid import trees

torch = pytest.importorskip("torch")
LENGTHS = (6, 3, 5)
CASES = [
    ("cnn_lstm", "resnet18", "mean", 0, True),
    ("cnn_gru", "resnet18", "attention", 24, True),
    ("cnn_lstm", "resnet50", "attention", 40, True),
    ("cnn_gru", "resnet50", "last", 0, True),
    ("cnn_gru", "resnet18", "last", 24, False),
]


class Reference(torch.nn.Module):
    """The network in torch; recurrent layers see packed sequences."""

    def __init__(self, name, backbone, pool, feature_dim, bidirectional, hidden, classes):
        super().__init__()
        channels, nn = backbone.fc.in_features, torch.nn
        backbone.fc = nn.Identity()
        self.backbone, self.pool, self.bidirectional = backbone, pool, bidirectional
        if feature_dim:
            linear = nn.Linear(channels, feature_dim, bias=False)
            self.projection = nn.Sequential(linear, nn.BatchNorm1d(feature_dim), nn.Dropout(0.3))
        make = nn.LSTM if name == "cnn_lstm" else nn.GRU
        self.rnn = make(feature_dim or channels, hidden, 2, batch_first=True, dropout=0.3, bidirectional=bidirectional)
        size = hidden * (1 + bidirectional)
        if pool == "attention":
            self.attention = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1, bias=False))
        self.fc = nn.Linear(size, classes)

    def forward(self, video, lengths):
        """(b, t, 3, h, w) to logits."""
        x = self.backbone(video.flatten(0, 1))
        x = self.projection(x) if hasattr(self, "projection") else x
        x = x.unflatten(0, video.shape[:2])
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, state = self.rnn(packed)
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        valid = (torch.arange(out.shape[1]) < torch.tensor(lengths)[:, None])[..., None]
        if self.pool == "last":
            state = state[0] if isinstance(state, tuple) else state  # (layers * directions, b, hidden)
            pooled = torch.cat([*state[-1 - self.bidirectional :]], dim=-1)
        elif self.pool == "mean":
            pooled = (out * valid).sum(1) / valid.sum(1)
        else:
            pooled = (self.attention(out).masked_fill(~valid, -torch.inf).softmax(1) * out).sum(1)
        return self.fc(pooled)


@pytest.mark.parametrize(("name", "backbone", "pool", "feature_dim", "bidirectional"), CASES)
def test_logits(torchvision_models, randomised, relative_error, name, backbone, pool, feature_dim, bidirectional):
    trunk = getattr(torchvision_models, backbone)()
    net = randomised(Reference(name, trunk, pool, feature_dim, bidirectional, hidden=32, classes=7))
    video = np.random.default_rng(0).integers(0, 256, (3, 6, 64, 64, 3), np.uint8)
    options = {"hidden_dim": 32, "pool": pool, "feature_dim": feature_dim, "bidirectional": bidirectional}
    model, variables = flaxvid.load_model(name, net.state_dict(), backbone=backbone, **options)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = net(torch.from_numpy((video / 255.0 - mean) / std).float().permute(0, 1, 4, 2, 3), list(LENGTHS))
    mask = np.arange(6) < np.array(LENGTHS)[:, None]
    logits = jax.jit(lambda v, x, m: model.apply(v, x, frame_mask=m))(variables, video, mask)
    error = relative_error(logits, expected)
    print(f"{name} on {backbone}, {pool}: relative error {error:.1e}")
    assert error < 1e-4

    exported = flaxvid.to_torch(name, variables, overrides={"backbone": backbone, **options})
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    randomised(net, seed=1)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in exported.items()}, strict=True)
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())
    again = trees.flatten(flaxvid.load_model(name, exported, backbone=backbone, **options)[1])
    assert all((leaf == again[path]).all() for path, leaf in trees.flatten(variables).items())
