"""Logits against timm, the PyTorch library, with the same weights, read and written."""

import numpy as np
import peers
import pytest
from flax.traverse_util import flatten_dict
from peers import torch
from safetensors.torch import save_file

from vit_jax import models
from vit_jax.models.flops import forward_flops
from vit_jax.models.positions import resize_positions
from vit_jax.weights.api import load, load_params, save_params

timm = pytest.importorskip("timm")
flop_counter = pytest.importorskip("torch.utils.flop_counter")

pytestmark = pytest.mark.peers

# A ViT of each patch size, a hybrid of each kind of stem, and the smallest BiT ResNet.
NAMES = {
    "Ti/16": "vit_tiny_patch16_224",
    "S/32": "vit_small_patch32_224",
    "B/8": "vit_base_patch8_224",
    "R+Ti/16": "vit_tiny_r_s16_p8_224",
    "R50+B/16": "vit_base_r50_s16_224",
    "R50+B/32": None,  # timm has the parts of this one, but not the whole
    "R50x1": "resnetv2_50x1_bit",
}


def timm_model(variant, **kwargs):
    if variant != "R50+B/32":
        return timm.create_model(NAMES[variant], num_classes=1000, **kwargs).eval()
    hybrid = timm.models.vision_transformer_hybrid
    return hybrid._create_vision_transformer_hybrid(
        "vit_base_r50_s16_224",
        backbone=hybrid._resnetv2((3, 4, 6, 3)),
        embed_dim=768,
        depth=12,
        num_heads=12,
        num_classes=1000,
        **kwargs,
    ).eval()


@pytest.mark.parametrize("variant", [name for name in NAMES if name != "R50+B/32"])
def test_logits_equal_timms_both_ways(tmp_path, variant):
    """Our weights in timm's format and in the published one, read by timm; timm's read by us."""
    size, options = (224, 224), {}
    if variant == "B/8":  # an image of 224 has so many patches that attention takes half a minute
        size, options = (96, 96), {"img_size": 96}
    images = peers.random_images(size)
    as_timm = {} if variant == "R50x1" else {"gelu": "exact"}
    as_timm |= {"kernel_epsilon": 1e-8} if variant[0] == "R" else {}
    model = models.build(variant, num_classes=1000, **as_timm)
    params = peers.random_params(model, size)
    logits = peers.our_logits(model, params, images)
    reference = timm_model(variant, **options)

    save_params(params, tmp_path / "ours.safetensors", variant=variant, format="timm", **as_timm)
    timm.models.load_checkpoint(reference, tmp_path / "ours.safetensors", strict=True)
    peers.assert_close(logits, peers.torch_logits(reference, images))

    save_params(params, tmp_path / "ours.npz", variant=variant, format="npz", **as_timm)
    reference = timm_model(variant, **options)
    reference.load_pretrained(str(tmp_path / "ours.npz"))
    peers.assert_close(logits, peers.torch_logits(reference, images))

    theirs = peers.randomise(timm_model(variant, **options))
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    opened = load(tmp_path / "theirs.safetensors")
    assert opened.config.model.variant == variant
    for key in ("gelu", "kernel_epsilon"):
        assert opened.config.model[key] == as_timm.get(key)
    found = peers.our_logits(model, load_params(tmp_path / "theirs.safetensors"), images)
    peers.assert_close(found, peers.torch_logits(theirs, images))


def test_the_published_gelu_is_timms_tanh_form(tmp_path):
    images = peers.random_images()
    model = models.build("Ti/16", num_classes=1000)
    params = peers.random_params(model)
    save_params(params, tmp_path / "ours.npz", variant="Ti/16", format="npz")
    reference = timm_model("Ti/16", act_layer="gelu_tanh")
    reference.load_pretrained(str(tmp_path / "ours.npz"))
    logits = peers.our_logits(model, params, images)
    expected = peers.torch_logits(reference, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_hybrids_standardise_kernels_as_published(tmp_path, monkeypatch):
    """timm's stem with (w - mean) / (std + 1e-5) in the place of its own formula."""

    def forward(self, x):
        x = timm.layers.padding.pad_same(x, self.kernel_size, self.stride) if self.same_pad else x
        axes = dict(dim=(1, 2, 3), keepdim=True)
        kernel = self.weight - self.weight.mean(**axes)
        kernel = kernel / (self.weight.std(**axes, correction=0) + 1e-5)
        return torch.nn.functional.conv2d(x, kernel, None, self.stride, self.padding)

    images = peers.random_images()
    model = models.build("R50+B/32", num_classes=1000, gelu="exact")
    params = peers.random_params(model)
    save_params(params, tmp_path / "ours.npz", variant="R50+B/32", format="npz")
    reference = timm_model("R50+B/32")
    reference.load_pretrained(str(tmp_path / "ours.npz"))
    found = peers.our_logits(model, params, images)
    with pytest.raises(AssertionError):  # so the formula matters
        peers.assert_close(found, peers.torch_logits(reference, images))
    monkeypatch.setattr(timm.layers.StdConv2dSame, "forward", forward)
    peers.assert_close(found, peers.torch_logits(reference, images))


def test_pickled_state_dicts(tmp_path):
    theirs = peers.randomise(timm_model("Ti/16"))
    images = peers.random_images()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    opened = load(tmp_path / "theirs.pth")
    found = peers.our_logits(opened.model(), load_params(tmp_path / "theirs.pth"), images)
    peers.assert_close(found, peers.torch_logits(theirs, images))

    params = load_params(tmp_path / "theirs.pth")
    save_params(params, tmp_path / "ours.pth", variant="Ti/16", format="timm", gelu="exact")
    reference = timm_model("Ti/16")
    timm.models.load_checkpoint(reference, tmp_path / "ours.pth", strict=True)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(reference.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["Ti/16", "R+Ti/16"])
@pytest.mark.parametrize("size", [(384, 384), (192, 256)])
def test_logits_at_other_sizes_equal_timms_after_its_own_resize(tmp_path, variant, size):
    theirs = peers.randomise(timm_model(variant))
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    reference = timm_model(
        variant,
        img_size=size,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / "theirs.safetensors"), custom_load=False),
    )
    params = load_params(tmp_path / "theirs.safetensors", image_size=size, resize="cubic")
    np.testing.assert_allclose(
        params["Transformer"]["posembed_input"]["pos_embedding"],
        reference.pos_embed.detach().numpy(),
        atol=1e-6,
    )
    images = peers.random_images(size)
    model = load(tmp_path / "theirs.safetensors").model()
    found = peers.our_logits(model, params, images)
    peers.assert_close(found, peers.torch_logits(reference, images))


@pytest.mark.parametrize(("old", "new"), [((7, 7), (12, 12)), ((12, 12), (7, 7)), ((6, 4), (3, 9))])
def test_cubic_is_timms_resampling(rng, old, new):
    table = rng.normal(size=(1, 1 + old[0] * old[1], 5)).astype(np.float32)
    expected = timm.layers.resample_abs_pos_embed(torch.tensor(table), new, old).numpy()
    found = resize_positions(table, old, new, "cubic")
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("pre_logits", [False, True])
def test_headless_and_average_pooled_models(tmp_path, pre_logits):
    """timm's average pooling, with its norm before the mean as in the paper's D.3."""
    images = peers.random_images()
    model = models.build("Ti/16", num_classes=0, pool="gap", gelu="exact", pre_logits=pre_logits)
    params = peers.random_params(model)
    path = tmp_path / "gap.safetensors"
    save_params(params, path, variant="Ti/16", format="timm", gelu="exact")
    again = load(path).model()
    assert (again.pool, again.pre_logits, again.gelu) == ("gap", pre_logits, "exact")
    reference = timm.create_model(
        NAMES["Ti/16"], num_classes=0, class_token=False, global_pool="avg", fc_norm=False
    ).eval()
    missing, extra = reference.load_state_dict(timm.models.load_state_dict(path), strict=False)
    assert not missing and set(extra) == (
        {"pre_logits.fc.weight", "pre_logits.fc.bias"} if pre_logits else set()
    )
    if not pre_logits:  # which today's timm no longer has
        found = peers.our_logits(model, params, images)
        peers.assert_close(found, peers.torch_logits(reference, images))


@pytest.mark.parametrize("variant", ["Ti/16", "R50+B/16", "R50x1"])
def test_flops_equal_the_count_of_pytorch(variant):
    """Matrix products and convolutions as PyTorch's own counter sees them in timm's model."""
    reference, counter = timm_model(variant), flop_counter.FlopCounterMode(display=False)
    for module in reference.modules():
        if hasattr(module, "fused_attn"):  # which the counter doesn't know on a CPU
            module.fused_attn = False
    with counter, torch.no_grad():
        reference(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() == forward_flops(variant, 224, num_classes=1000, padding=True)


def test_a_folder_of_timms_hub_is_opened(tmp_path):
    theirs = peers.randomise(timm_model("Ti/16"))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    opened = load(tmp_path)
    assert opened.config.model.variant == "Ti/16" and opened.config.model.gelu == "exact"
    found = flatten_dict(load_params(tmp_path), sep="/")["head/bias"]
    np.testing.assert_array_equal(found, theirs.head.bias.detach().numpy())
