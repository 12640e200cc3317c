"""The attentive pool against that of transformers' V-JEPA 2, without the self-attention that it may have before."""

import numpy as np
import pytest

from flaxvid.layers.attentive import AttentivePool

torch = pytest.importorskip("torch")

MODULES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "query": "cross_attn.q_proj",
    "key": "cross_attn.k_proj",
    "value": "cross_attn.v_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}


def test_pool(torchvision_models, randomised):
    transformers = pytest.importorskip("transformers")
    modeling = pytest.importorskip("transformers.models.vjepa2.modeling_vjepa2")
    config = transformers.VJEPA2Config(
        hidden_size=128, num_attention_heads=2, mlp_ratio=4, num_pooler_layers=0, layer_norm_eps=1e-6
    )
    net = randomised(modeling.VJEPA2AttentivePooler(config)).eval()
    state = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    params = {"token": state.pop("query_tokens")}
    for ours, theirs in MODULES.items():
        *folders, name = ours.split("/")
        holder = params
        for folder in folders:
            holder = holder.setdefault(folder, {})
        weight, bias = (state.pop(f"cross_attention_layer.{theirs}.{leaf}") for leaf in ("weight", "bias"))
        holder[name] = {"scale" if "norm" in name else "kernel": weight.T, "bias": bias}
    assert not state
    del params["key"]["bias"]  # it moves all scores alike
    x = np.random.default_rng(0).normal(size=(3, 50, 128)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    got = np.asarray(AttentivePool().apply({"params": params}, x))
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
