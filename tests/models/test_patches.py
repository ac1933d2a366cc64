"""Images are cut into whole patches, or refused."""

import chex
import jax
import jax.numpy as jnp
import pytest
from equations import shapes

from vit_jax import models
from vit_jax.models.patches import PatchEmbedding


def test_patches_can_be_rectangles():
    tree = shapes("Ti/16", (14, 27), num_classes=0, patch_size=(7, 9))
    assert tree["embedding/kernel"] == (7, 9, 3, 192)
    assert tree["Transformer/posembed_input/pos_embedding"] == (1, 1 + 2 * 3, 192)


@pytest.mark.parametrize("image", [(225, 224), (224, 100), (8, 16)])
def test_images_that_do_not_divide_into_patches_are_refused(image):
    with pytest.raises(ValueError, match=f"{image[0]}x{image[1]} pixels can't be cut"):
        shapes("Ti/16", image, num_classes=0)


def test_pixels_beside_whole_patches_can_be_left_out(rng):
    model = models.build("Ti/16", num_classes=3, depth=1, crop_to_patches=True)
    images = rng.uniform(-1, 1, (2, 45, 63, 3)).astype("float32")
    assert model.grid((45, 63)) == (2, 3)
    params = model.init(jax.random.key(0), images)["params"]
    params["head"]["kernel"] += rng.normal(size=(192, 3))
    found, expected = (model.apply({"params": params}, x) for x in (images, images[:, :32, :48]))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="15x48 pixels can't be cut"):
        model.grid((15, 48))


def test_hybrids_cut_the_stems_features_into_patches():
    """Sides are halved and rounded up by the stem; only its features need whole patches."""
    model = models.build("R50+B/16", num_classes=0)
    assert model.stride == (16, 16) and model.grid((225, 64)) == (15, 4)
    tree = shapes("R50+B/16", (33, 64), num_classes=0, width=12, num_heads=3, depth=1)
    assert tree["Transformer/posembed_input/pos_embedding"] == (1, 1 + 3 * 4, 12)
    assert models.build("R+Ti/16", num_classes=0).stride == (32, 32)
    with pytest.raises(ValueError, match="of 100x224 pixels the stem makes features of 25x56"):
        shapes("R+Ti/16", (100, 224), num_classes=0)


def test_a_small_stem_makes_the_features_that_are_cut_into_patches():
    model = models.build("Ti/16", num_classes=0, depth=1, conv_stem=(8, 6), patch_size=2)
    assert model.stride == (16, 16) and model.grid((32, 48)) == (2, 3)
    tree = shapes("Ti/16", (32, 48), num_classes=0, conv_stem=(8, 6), patch_size=2)
    assert tree["conv_stem/conv_0/kernel"] == (4, 4, 3, 8)
    assert tree["conv_stem/conv_1/kernel"] == (3, 3, 8, 6)
    assert tree["embedding/kernel"] == (2, 2, 6, 192)
    assert tree["Transformer/posembed_input/pos_embedding"] == (1, 1 + 2 * 3, 192)
    with pytest.raises(ValueError, match="a model has one of them"):
        models.build("R+Ti/16", num_classes=0, conv_stem=(8, 6))


def test_a_matmul_embeds_patches_as_the_convolution_does():
    images = jax.random.normal(jax.random.key(0), (2, 37, 50, 3))  # 5 and 2 pixels are left out
    convolution, matmul = (
        PatchEmbedding(8, (16, 8), strides=(16, 8), as_matmul=as_matmul)
        for as_matmul in (False, True)
    )
    key = jax.random.key(1)
    params = convolution.init(key, images)
    chex.assert_trees_all_equal(matmul.init(key, images), params)

    def loss(module, params):
        return jnp.sin(module.apply(params, images)).sum()

    for of in (lambda m: m.apply(params, images), lambda m: jax.grad(loss, 1)(m, params)):
        chex.assert_trees_all_close(of(matmul), of(convolution), rtol=1e-4, atol=1e-4)
