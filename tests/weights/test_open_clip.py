"""Image towers of open_clip and of OpenAI's CLIP equal those of timm and of open_clip itself."""

import functools
import json
import logging

import jax
import numpy as np
import peers
import pytest
from flax.traverse_util import flatten_dict
from missing_arrays import unnoticed
from peers import torch
from safetensors.numpy import save_file

from vit_jax.weights.api import load, save

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.peers

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
WIDTH, MLP, EMBEDDING = 128, 256, 20


def check(checkpoint, module, mean_and_std=CLIP, pixels=PIXELS):
    mean, std = map(np.array, mean_and_std)
    expected = peers.torch_logits(module, np.float32((pixels / 255 - mean) / std))
    params = jax.tree.map(np.asarray, checkpoint.params)
    peers.assert_close(
        peers.our_logits(checkpoint.model(), params, np.float32(pixels / 127.5 - 1)), expected
    )


def arrays_of(prefix="", *, projection=True):
    """The arrays of a tower with random values, beside a few of the text tower."""
    d, generator = WIDTH, torch.Generator().manual_seed(0)
    shapes = {
        "class_embedding": (d,),
        "positional_embedding": (17, d),
        "conv1.weight": (d, 3, 8, 8),
        "ln_pre.weight": (d,),
        "ln_pre.bias": (d,),
        "ln_post.weight": (d,),
        "ln_post.bias": (d,),
    } | ({"proj": (d, EMBEDDING)} if projection else {})
    for i in range(2):
        block = f"transformer.resblocks.{i}."
        for name, shape in {
            "attn.in_proj_": (3 * d, d),
            "attn.out_proj.": (d, d),
            "mlp.c_fc.": (MLP, d),
            "mlp.c_proj.": (d, MLP),
            "ln_1.": (d,),
            "ln_2.": (d,),
        }.items():
            shapes |= {f"{block}{name}weight": shape, f"{block}{name}bias": shape[:1]}
    shapes = {f"visual.{name}": shape for name, shape in shapes.items()}
    shapes |= {"logit_scale": (), "positional_embedding": (8, 32), "text_projection": (32, 20)}
    scale = {2: WIDTH**-0.5, 4: 192**-0.5}
    arrays = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator) * scale.get(len(shape), 0.2)
        is_scale = "ln_" in name and name.endswith("weight")
        arrays[prefix + name] = x + 1 if is_scale else x
    return arrays


def timms(arrays, gelu):
    """timm's model with these arrays, which timm converts itself."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=WIDTH, depth=2, num_heads=2, mlp_ratio=MLP / WIDTH,
        num_classes=EMBEDDING, pre_norm=True, act_layer=gelu,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-5),
    )  # fmt: skip
    convert = timm.models.vision_transformer.checkpoint_filter_fn
    model.load_state_dict(convert(dict(arrays), model))
    return model.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_tower_without_a_configuration(tmp_path, prefix, caplog):
    arrays = arrays_of(prefix)
    torch.save({"state_dict": arrays, "epoch": 3}, tmp_path / "x.pt")
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path / "x.pt")
    assert "open_clip_config.json" in caplog.text and "gelu='quick'" in caplog.text
    assert "2 heads" in caplog.text
    check(found, timms(arrays, torch.nn.GELU))
    assert any("that of CLIP is taken" in change for change in found.changes)
    assert (found.config.data.eval_crop, found.config.data.crop_fraction) == ("central", 1.0)
    assert any("not epoch" in change for change in found.changes)
    assert any("Left out: " in change and "logit_scale" in change for change in found.changes)
    check(load(tmp_path / "x.pt", gelu="quick"), timms(arrays, timm.layers.QuickGELU))


def test_a_state_dict_of_openai(tmp_path, caplog):
    numbers = {"input_resolution": 32, "context_length": 8, "vocab_size": 50}
    arrays = arrays_of() | {name: torch.tensor(x) for name, x in numbers.items()}
    torch.save({name: x.half() for name, x in arrays.items()}, tmp_path / "x.pt")
    halves = {name: x.half().float() for name, x in arrays.items()}
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path / "x.pt")
    assert not caplog.records
    check(
        found, timms({n: x for n, x in halves.items() if n not in numbers}, timm.layers.QuickGELU)
    )
    assert found.model().num_heads == 2 and found.model().projection == EMBEDDING


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit itself
def test_an_archive_of_torchscript_is_refused_with_advice(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"TorchScript archive.*torch\.jit\.load.*state_dict\(\)"):
        load(tmp_path / "x.pt")


def test_clips_resnet_is_refused(tmp_path):
    names = ("visual.conv1.weight", "visual.layer1.0.conv1.weight")
    torch.save({name: torch.zeros(4, 4, 1, 1) for name in names}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="its image tower is CLIP's ResNet"):
        load(tmp_path / "x.pt")


def test_a_bias_that_open_clip_always_has_is_missed(tmp_path):
    arrays = {n: x for n, x in arrays_of().items() if not n.endswith("in_proj_bias")}
    torch.save(arrays, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"resblocks\.0\.attn\.in_proj_bias is missing"):
        load(tmp_path / "x.pt")


def test_written_and_read_again(tmp_path):
    arrays = arrays_of()
    torch.save(arrays, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt", gelu="quick")
    save(found, tmp_path / "x.npz")
    check(load(tmp_path / "x.npz"), timms(arrays, timm.layers.QuickGELU))
    new = load(tmp_path / "x.pt", num_classes=4, gelu="quick")
    assert not new.model().projection and "projection" not in new.params


def test_what_a_configuration_says_wrongly_is_named(tmp_path):
    torch.save(arrays_of(), tmp_path / "open_clip_pytorch_model.bin")
    for config, words in [
        ({"model_cfg": 3}, "model_cfg must be a dict"),
        ({"model_cfg": {"vision_cfg": {"pool_type": "none"}}}, "pool_type is 'none'"),
        ({"model_cfg": {"vision_cfg": {"width": "x"}}}, "width must be a int"),
        ({"preprocess_cfg": {"mean": [0.5]}}, "mean must be three numbers"),
        ({"preprocess_cfg": {"resize_mode": "longest"}}, "resize_mode is 'longest'"),
        ({"model_cfg": {"vision_cfg": {"timm_model_name": "convnext_base"}}}, "'convnext_base'"),
        ({"model_cfg": {"vision_cfg": {"norm_kwargs": "x"}}}, "norm_kwargs must be a dict"),
        ({"model_cfg": {"vision_cfg": {"head_width": 0}}}, "num_heads=0"),
        ({"model_cfg": {"vision_cfg": {"width": 128, "layers": 3}}}, "resblocks.2.*is missing"),
        ({"model_cfg": {"vision_cfg": {"width": 128, "layers": 2, "image_size": 64}}}, "65, 128"),
    ]:
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=words):
            load(tmp_path)


def test_a_siglip_tower_that_is_a_model_of_timm(tmp_path):
    name = "vit_base_patch16_siglip_224"
    sizes = dict(depth=1, patch_size=8, img_size=32)
    trunk = peers.randomise(timm.create_model(name, num_classes=0, **sizes))
    arrays = {f"visual.trunk.{name}": x for name, x in trunk.state_dict().items()}
    arrays["visual.head.proj.weight"] = torch.randn(EMBEDDING, 768)
    torch.save(arrays | {"logit_bias": torch.zeros(1)}, tmp_path / "open_clip_pytorch_model.bin")
    vision = dict(timm_model_name=name, timm_pool="map", timm_proj="linear", image_size=32)
    halves = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    images = dict(mean=halves[0], std=halves[1])
    text = json.dumps(dict(model_cfg=dict(vision_cfg=vision), preprocess_cfg=images))
    (tmp_path / "open_clip_config.json").write_text(text)
    projection = torch.nn.Linear(768, EMBEDDING, bias=False)
    projection.weight.data = arrays["visual.head.proj.weight"]
    with pytest.raises(ValueError, match="its arrays are those of depth=1"):  # its name says so
        load(tmp_path, patch_size=8)
    found = load(tmp_path, depth=1, patch_size=8)
    check(found, torch.nn.Sequential(trunk, projection), halves)
    assert found.model().pool == "map" and found.model().num_heads == 12
    check(load(tmp_path, num_classes=0, depth=1, patch_size=8), trunk, halves)


def configured(folder, **changes):
    """Writes a tower and its configuration, of which sections are changed."""
    arrays = {name: x.numpy() for name, x in arrays_of().items()}
    save_file(arrays, folder / "open_clip_model.safetensors")
    vision = dict(image_size=32, layers=2, width=WIDTH, patch_size=8, **changes.pop("vision", {}))
    model = dict(embed_dim=EMBEDDING, vision_cfg=vision)
    text = json.dumps(dict(model_cfg=model, preprocess_cfg=changes))
    (folder / "open_clip_config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(size=[48, 48]),
            r"images get the size \(48, 48\), but the model is one of \(32, 32\)",
        ),
        (dict(vision=dict(attentional_pool=True)), "attentional_pool has queries of its own"),
        (dict(vision=dict(no_ln_pre=True)), "visual.ln_pre.weight is not in the model"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(configured(tmp_path, **changes))


def test_no_array_is_missing_in_silence(tmp_path):
    configured(tmp_path, size=32)
    path = tmp_path / "open_clip_model.safetensors"
    found = unnoticed(path, lambda: load(tmp_path))
    assert set(found) <= {"logit_scale", "positional_embedding", "text_projection"}


def test_a_configuration_of_transformers_beside_files_of_open_clip(tmp_path):
    expected = load(configured(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert load(tmp_path).model() == expected.model()


# --------------------------------------------------------------- with open_clip, where installed

TEXT = dict(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
OWN = dict(image_size=32, layers=2, width=WIDTH, patch_size=8)
TOWERS = [
    (OWN, {}),
    (OWN, dict(quick_gelu=True)),
    (OWN | dict(head_width=32, mlp_ratio=3.0, ls_init_value=0.1), {}),
    (OWN | dict(no_ln_pre=True, pool_type="avg"), {}),
    (OWN | dict(pool_type="avg", final_ln_after_pool=True), {}),
    (OWN | dict(act_kwargs={"approximate": "tanh"}, norm_kwargs={"eps": 1e-2}), {}),
    (dict(timm_model_name="test_vit", timm_pool="", timm_proj="linear", image_size=160), {}),
]


@pytest.mark.parametrize(("vision", "more"), TOWERS)
def test_towers_of_open_clip(tmp_path, vision, more):
    open_clip = pytest.importorskip("open_clip")
    config = dict(embed_dim=EMBEDDING, vision_cfg=vision, text_cfg=TEXT, **more)
    kind = open_clip.model.CustomTextCLIP if "timm_pool" in vision else open_clip.model.CLIP
    model = peers.randomise(kind(**config))
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    scale = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    images = dict(mean=scale[0], std=scale[1], interpolation="bicubic", resize_mode="squash")
    text = json.dumps(dict(model_cfg=config, preprocess_cfg=images))
    (tmp_path / "open_clip_config.json").write_text(text)
    found = load(tmp_path)
    side = vision["image_size"]
    pixels = np.random.default_rng(1).integers(0, 256, (2, side, side, 3))
    check(found, model.visual, scale, pixels)
    assert found.image_shape == (side, side)
    assert (found.config.data.eval_crop, found.config.data.crop_fraction) == ("squash", 1.0)
    assert not [n for n in flatten_dict(found.params, sep="/") if n.startswith("head")]
