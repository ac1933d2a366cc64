"""Every variant: its parameters counted by hand, its names, and what can't be built."""

import numpy as np
import pytest
from equations import shapes

from vit_jax import models

# Counted with public code: without a head, and with 1,000 classes, at 224 pixels.
PUBLISHED_COUNTS = {
    "Ti/16": (5_524_416, 5_717_416),
    "S/32": (22_493_952, 22_878_952),
    "S/16": (21_665_664, 22_050_664),
    "B/32": (87_455_232, 88_224_232),
    "B/16": (85_798_656, 86_567_656),
    "L/32": (305_510_400, 306_535_400),
    "L/16": (303_301_632, 304_326_632),
    "H/14": (630_764_800, 632_045_800),
    "R+Ti/16": (6_144_704, 6_337_704),
    "R26+S/32": (36_046_912, 36_431_912),
    "R50+B/16": (97_890_112, 98_659_112),
    "R50+L/32": (327_969_856, 328_994_856),
    "R50x1": (None, 25_549_352),
    "R50x2": (None, 97_988_712),
    "R50x3": (None, 217_319_080),
    "R101x1": (None, 44_541_480),
    "R101x3": (None, 387_934_888),
    "R152x1": (None, 60_185_128),
    "R152x2": (None, 236_335_208),
    "R152x4": (None, 936_533_224),
    "R200x3": (None, 568_633_000),
}


UNPUBLISHED = {
    "Nano/8",
    "Conv+Nano/16",
    "B/8",
    "R50+B/32",
    "R50+L/16",
    "Axial-B/32",
    "Axial-B/16",
    "AxialResNet50",
}


def count_encoder_block(width, mlp_dim):
    attention = 4 * (width * width + width)  # q, k, v and the projection
    mlp = width * mlp_dim + mlp_dim + mlp_dim * width + width
    return attention + mlp + 2 * 2 * width


def count_units(stages, width, *, kernel=9, projected_norm):
    """Bottlenecks: convolutions without bias, two parameters a channel of every norm."""
    total, inputs = 0, width
    for stage, units in enumerate(stages):
        features = width * 2**stage
        for unit in range(units):
            total += inputs * features + kernel * features**2 + features * 4 * features
            # Norms after (hybrids) or before (BiT) the convolutions.
            total += 2 * (2 * features + (4 * features if projected_norm else inputs))
            if unit == 0:
                total += inputs * 4 * features
                total += 2 * 4 * features if projected_norm else 0
            inputs = 4 * features
    return total, inputs


def counted_vit(
    depth,
    width,
    mlp_dim,
    num_heads,
    patch_size,
    stem=None,
    conv_stem=None,
    axial=False,
    pool="token",
    num_classes=0,
    image=224,
):
    """The number of parameters by the paper's equations 1 to 4, and table 1's sizes."""
    channels, stride, total = 3, 1, 0
    if stem is not None:
        units, channels = count_units(stem, 64, projected_norm=True)
        total += 7 * 7 * 3 * 64 + 2 * 64 + units
        stride = 4 * 2 ** max(0, len(stem) - 1)
    for i, outputs in enumerate(conv_stem or ()):
        total += (3**2 if i else 4**2) * channels * outputs + outputs
        channels, stride = outputs, 4 * 2**i
    token = int(pool == "token")
    tokens = (image // stride // patch_size) ** 2 + token
    total += channels * patch_size**2 * width + width  # E, bias
    total += tokens * width + token * width  # E_pos, class
    blocks = depth * (2 if axial else 1)
    total += blocks * count_encoder_block(width, mlp_dim) + 2 * width
    return total + (width * num_classes + num_classes if num_classes else 0)


def counted_resnet(layers, width_factor, axial=False, num_classes=0, image=224):
    width = 64 * width_factor
    total, channels = count_units(layers, width, kernel=0 if axial else 9, projected_norm=False)
    total += 7 * 7 * 3 * width + 2 * channels  # root, last norm
    if axial:
        side = image // 4
        for stage, units in enumerate(layers):
            features = width * 2**stage
            for unit in range(units):
                line = side // 2 ** max(0, stage - (unit == 0))  # the first strides afterwards
                attention = 4 * (features * features + features)
                total += 2 * (attention + (2 * line - 1) * features // 8)
    return total + (channels * num_classes + num_classes if num_classes else 0)


LARGE = ("L/", "H/", "R26", "R50+", "R1", "R2", "Axial")


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith(LARGE) else ())
        for name in models.VARIANTS
    ],
)
def test_every_variant_has_its_golden_parameter_count(variant):
    row = models.VARIANTS[variant]
    count = counted_resnet if "layers" in row else counted_vit
    for i, num_classes in enumerate((0, 1000)):
        sizes = shapes(variant, num_classes=num_classes).values()
        found = sum(int(np.prod(shape)) for shape in sizes)
        assert found == count(num_classes=num_classes, **row)
        if variant not in UNPUBLISHED:
            assert PUBLISHED_COUNTS[variant][i] in (found, None)


def test_every_published_model_is_a_variant():
    assert set(PUBLISHED_COUNTS) | UNPUBLISHED == set(models.VARIANTS)
    assert not set(PUBLISHED_COUNTS) & UNPUBLISHED


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("b16", "B/16"),
        ("B_16", "B/16"),
        ("ViT-B/16", "B/16"),
        ("vit_l32", "L/32"),
        ("h14", "H/14"),
        ("ti16", "Ti/16"),
        ("nano8", "Nano/8"),
        ("conv_nano_16", "Conv+Nano/16"),
        ("S/32", "S/32"),
        ("R50+ViT-B_16", "R50+B/16"),
        ("R50x1+ViT-L/32", "R50+L/32"),
        ("R26_S_32", "R26+S/32"),
        ("R+ViT-Ti_16", "R+Ti/16"),
        ("ResNet152x2", "R152x2"),
        ("r50x1", "R50x1"),
        ("Axial-ViT-B/32", "Axial-B/32"),
    ],
)
def test_variants_are_known_by_their_usual_spellings(spelling, name):
    assert models.canonical(spelling) == name


@pytest.mark.parametrize(
    ("variant", "overrides", "message"),
    [
        ("B/17", {}, "closest: B/16"),
        (
            "B/16",
            {"widht": 4},
            "has no widht; it takes axial, class_tokens, conv_stem, crop_to_patches",
        ),
        ("B/16", {"num_heads": 7}, "width=768 is not a multiple of num_heads=7"),
        ("B/16", {"pool": "max"}, "pool='max' is unknown: 'token' or 'gap'"),
        ("B/16", {"registers": -1}, "registers=-1 must be a whole number"),
        ("B/16", {"class_tokens": 0}, "pool='token' reads a class token: class_tokens must not"),
        ("B/16", {"registers": 1, "positions": "relative"}, "added before the encoder"),
        ("B/16", {"pre_norm": True, "positions_at": "layers"}, "positions_at must be 'stem'"),
        ("Axial-B/16", {"registers": 1}, "positions not 'relative', and axial False"),
        ("Axial-B/16", {"class_tokens": 1}, "no place for a class token"),
        ("B/16", {"depth": 0}, "depth=0 must be a whole number above 0"),
        ("B/16", {"stem": (3, 0)}, "stem=(3, 0) must be numbers of units, or None"),
        ("B/16", {"positions": "3d"}, "'1d' or '2d' or 'relative' or 'sincos' or 'none'"),
        ("B/16", {"positions": "none", "positions_at": "layers"}, "there is nothing to add"),
        ("B/16", {"positions": "2d", "width": 9, "num_heads": 3}, "needs an even width, not 9"),
        ("B/16", {"gelu": "fast"}, "gelu='fast' is unknown: 'tanh' or 'exact'"),
        ("B/16", {"implementation": "fast"}, "implementation='fast' is unknown: None or 'plain'"),
        ("B/16", {"implementation": "cudnn"}, "not in float32 with a depth of 64"),
        ("B/16", {"scan": True, "stochastic_depth": 0.1}, "stochastic_depth must be 0"),
        ("Axial-B/16", {"pool": "token"}, "no place for a class token: take pool='gap'"),
        (
            "R50x1",
            {"dropout": 0.1},
            "R50x1 has no dropout; it takes axial, dtype, head_bias, kernel_",
        ),
    ],
)
def test_impossible_models_are_explained(variant, overrides, message):
    with pytest.raises(ValueError) as error:
        models.build(variant, num_classes=2, **overrides)
    assert message in str(error.value)
