"""Files as Meta's repositories write them give the features of timm, which has their models."""

import argparse
import functools
import json
import logging

import jax
import numpy as np
import peers
import pytest
from missing_arrays import unnoticed
from peers import torch
from safetensors.numpy import save_file

from vit_jax.weights.api import load, save

timm = pytest.importorskip("timm")
vit = timm.models.vision_transformer

pytestmark = pytest.mark.peers

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
SMALL = dict(img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=0)


def model_of(**options):
    return peers.randomise(vit.VisionTransformer(**SMALL | options))


def check(found, module):
    mean, std = IMAGENET
    expected = peers.torch_logits(module, np.float32((PIXELS / 255 - mean) / std))
    params = jax.tree.map(np.asarray, found.params)
    images = np.float32(PIXELS / 127.5 - 1)
    peers.assert_close(peers.our_logits(found.model(), params, images), expected)


def with_prefix(prefix, arrays):
    return {prefix + name: x for name, x in arrays.items()}


def noise(arrays):
    return {name: torch.randn_like(x) for name, x in arrays.items()}


def projector(prefix):
    """The head of a self-supervised objective."""
    return with_prefix(
        prefix, {"mlp.0.weight": torch.zeros(4, 4), "last_layer.bias": torch.ones(3)}
    )


def deit3_names(arrays):
    return {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): x
            for name, x in arrays.items()}  # fmt: skip


def dino(wrapper):
    module = model_of()
    own = module.state_dict()
    teacher = with_prefix(f"{wrapper}backbone.", own) | projector(f"{wrapper}head.")
    student = with_prefix("module.backbone.", noise(own)) | projector("module.head.")
    state = {"student": student, "teacher": teacher, "epoch": 7}
    return module, state | {"args": argparse.Namespace(arch="vit_small", lr=0.1)}


def dinov2_in_training():
    module = model_of(init_values=0.5)
    own = module.state_dict()
    groups = {name.replace("blocks.", "blocks.0."): x for name, x in own.items()}
    groups["mask_token"] = torch.zeros(1, 128)
    return module, {"model": with_prefix("student.backbone.", noise(groups))
                    | with_prefix("teacher.backbone.", groups)}  # fmt: skip


def mae():
    module = model_of()
    decoder = {f"decoder_blocks.0.{n}": x for n, x in model_of().blocks[0].state_dict().items()}
    others = {"mask_token": torch.zeros(1, 1, 64), "decoder_pos_embed": torch.zeros(1, 17, 64)}
    return module, {"model": module.state_dict() | decoder | others}


def moco(encoder="base_encoder"):
    module = model_of(embed_dim=384, num_heads=12)
    own = module.state_dict()
    base = with_prefix("module.base_encoder.", own | {"head.0.weight": torch.zeros(4, 384)})
    momentum = with_prefix("module.momentum_encoder.", noise(own))
    return module, {"epoch": 3, "arch": "vit_small", "state_dict": base | momentum
                    | {"module.predictor.0.weight": torch.zeros(4, 4)}}  # fmt: skip


def deit3():
    module = model_of(init_values=0.5, no_embed_class=True, num_classes=5)
    return module, {"model": deit3_names(module.state_dict())}


def ibot():
    module = model_of()
    return module, {"state_dict": module.state_dict() | {"masked_embed": torch.zeros(1, 128)}}


def ijepa():
    module = model_of(class_token=False, global_pool="avg", fc_norm=False)
    target = with_prefix("module.", module.state_dict())
    predictor = {"module.predictor_embed.weight": torch.zeros(8, 128)}
    return module, {"encoder": noise(target), "target_encoder": target, "predictor": predictor}


@pytest.mark.parametrize(("family", "made"), [
    ("I-JEPA", ijepa),
    ("DINO", functools.partial(dino, "module.")),
    ("DINO", functools.partial(dino, "")),
    ("DINOv2", dinov2_in_training),
    ("MAE", mae),
    ("MoCo v3", moco),
    ("DeiT-III", deit3),
    ("iBOT", ibot),
])  # fmt: skip
def test_training_states(tmp_path, caplog, family, made):
    module, state = made()
    torch.save(state, tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path / "x.pth")
    assert not caplog.records  # nothing had to be assumed
    check(found, module)
    said = " ".join(found.changes)
    assert f"those of {family}: ImageNet's mean" in said
    data = found.config.data
    assert data.crop_fraction == (1.0 if family == "DeiT-III" else 0.875)
    resize = "bilinear_antialias" if family == "MoCo v3" else "bicubic_antialias"
    assert (data.eval_crop, data.eval_resize) == ("central", resize)
    if family != "DeiT-III":
        assert "Only " in said or "Left out: " in said
    save(found, tmp_path / "again.npz")
    check(load(tmp_path / "again.npz"), module)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_dinov2(tmp_path, registers, gated):
    """Arrays by Meta's names, which timm converts itself."""
    more = dict(init_values=0.5, reg_tokens=registers, no_embed_class=registers > 0)
    if gated:
        more |= dict(mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU)
    module = model_of(**more)
    arrays = module.state_dict()
    arrays["mask_token"] = torch.zeros(1, 128)
    if gated:
        swap = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
        for old, new in swap.items():
            arrays = {name.replace(old, new): x for name, x in arrays.items()}
    if registers:
        arrays["register_tokens"] = arrays.pop("reg_token")
        row = torch.randn(1, 1, 128)
        arrays["pos_embed"] = torch.cat([row, arrays["pos_embed"]], dim=1)
    torch.save(arrays, tmp_path / "x.pth")
    module.load_state_dict(vit.checkpoint_filter_fn(dict(arrays), module))
    found = load(tmp_path / "x.pth")
    check(found, module)
    assert found.model().registers == registers


@pytest.mark.parametrize(("name", "options", "heads"), [
    ("dino_deitsmall16_pretrain.pth", dict(), 6),
    ("dino_vitbase8_pretrain.pth", dict(embed_dim=768, patch_size=8), 12),
    ("dinov2_vits14_reg4_pretrain.pth", dict(patch_size=14, reg_tokens=4), 6),
    ("mae_pretrain_vit_huge.pth", dict(embed_dim=1280, depth=32, patch_size=14), 16),
    ("mae_finetuned_vit_base.pth", dict(embed_dim=768), 12),
    ("vit-s-300ep.pth.tar", dict(), 12),
    ("linear-vit-s-300ep.pth.tar", dict(), 12),
    ("deit_small_patch16_224-cd65a155.pth", dict(), 6),
    ("deit_3_huge_224_21k.pth", dict(embed_dim=1280, depth=32, patch_size=14), 16),
    ("deit_3_base_384_1k.pth", dict(embed_dim=768), 12),
])  # fmt: skip
def test_names_of_published_files_tell_heads_and_scale(tmp_path, caplog, name, options, heads):
    sizes = dict(embed_dim=384, depth=12, patch_size=16, img_size=4 * options.get("patch_size", 16))
    with torch.device("meta"):
        arrays = vit.VisionTransformer(**SMALL | sizes | options).state_dict()
    number = torch.zeros(())  # all that the file has: arrays of such sizes aren't read here
    torch.save({n: number.expand(x.shape) for n, x in arrays.items()}, tmp_path / name)
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path / name)
    assert not caplog.records and found.model().num_heads == heads
    assert any("Mean (0.485" in change for change in found.changes)
    assert found.config.data.crop_fraction == (1.0 if "deit_3" in name else 0.875)


def test_nothing_is_assumed_of_a_plain_file(tmp_path, caplog):
    torch.save(model_of().state_dict(), tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path / "x.pth")
    assert "2 heads" in caplog.text and "mean" in caplog.text
    assert not any("ImageNet" in change for change in found.changes)


def test_what_is_known_is_not_warned_of(tmp_path, caplog):
    torch.save(model_of(num_classes=3).state_dict(), tmp_path / "x.pth")
    load(tmp_path / "x.pth", num_heads=2)
    assert "what is pooled" in caplog.text and "attention heads" not in caplog.text
    caplog.clear()
    load(tmp_path / "x.pth", num_heads=2, pool="token")
    assert "with which mean" in caplog.text and "pooled" not in caplog.text


@pytest.mark.parametrize(("width", "heads"), [(1280, 16), (1408, 16), (384, 6)])
def test_heads_of_ijepa(tmp_path, width, heads):
    module = model_of(class_token=False, global_pool="avg", embed_dim=width, depth=1, num_heads=1)
    torch.save({"target_encoder": module.state_dict(), "encoder": {}}, tmp_path / "x.pth")
    assert load(tmp_path / "x.pth").model().num_heads == heads


def test_heads_beside_the_encoder_are_not_lost_in_silence(tmp_path, caplog):
    state = model_of(num_classes=3).state_dict()
    head = {name: state.pop(name) for name in ("head.weight", "head.bias")}
    torch.save(with_prefix("backbone.", state) | head, tmp_path / "x.pth")
    assert not load(tmp_path / "x.pth").num_classes
    assert "only backbone. is taken, not the head head.weight" in caplog.text
    probe = {"head.0.running_mean": torch.zeros(128), "head.1.weight": head["head.weight"]}
    torch.save({"model": state | probe}, tmp_path / "x.pth")  # MAE's linear probe
    with pytest.raises(ValueError, match=r"head\.0\.running_mean is not in the model"):
        load(tmp_path / "x.pth")


def test_an_empty_average_is_none(tmp_path):
    module = model_of()
    torch.save({"model": module.state_dict(), "model_ema": {}}, tmp_path / "x.pth")
    np.testing.assert_array_equal(
        np.asarray(load(tmp_path / "x.pth").params["cls"]), module.cls_token.detach().numpy()
    )


@pytest.mark.parametrize("bare", [False, True])
def test_no_array_of_timm_is_missing_in_silence(tmp_path, bare):
    """Of a bare file, nothing tells that rows of its table are for registers."""
    module = model_of(num_classes=3, reg_tokens=2, init_values=0.5, pre_norm=True)
    path = tmp_path / ("x.safetensors" if bare else "model.safetensors")
    save_file({name: x.numpy() for name, x in module.state_dict().items()}, path)
    config = {
        "architecture": "vit_small_patch16_224",
        "num_classes": 3,
        "model_args": dict(SMALL, reg_tokens=2, pre_norm=True, img_size=32) | {"num_classes": 3},
    }
    if not bare:
        (tmp_path / "config.json").write_text(json.dumps(config))
    found = unnoticed(path, lambda: load(path if bare else tmp_path))
    assert found == (["reg_token"] if bare else [])


def test_the_average_is_taken_before_the_parameters(tmp_path):
    module, other = model_of(), model_of()
    torch.nn.init.normal_(other.pos_embed)
    state = {"model": other.state_dict(), "model_ema": module.state_dict(), "optimizer": {}}
    torch.save(state, tmp_path / "x.pth")
    found = load(tmp_path / "x.pth")
    np.testing.assert_array_equal(
        found.params["Transformer"]["posembed_input"]["pos_embedding"], module.pos_embed.detach()
    )
    assert "Only model_ema is taken, not model, optimizer." in found.changes


def test_several_models_of_which_none_is_the_one_are_refused(tmp_path):
    arrays = model_of().state_dict()
    torch.save(with_prefix("a.", arrays) | with_prefix("b.", arrays), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"several models, whose names begin with a\., b\."):
        load(tmp_path / "x.pth")


def test_a_state_that_holds_itself_is_refused(tmp_path):
    state = {}
    state["model"] = state
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load(tmp_path / "x.pth")
