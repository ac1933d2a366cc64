"""Losses and sums against NumPy in float64, and against the plain model's own output."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, IMAGE, random_params, tiny

from vit_jax.models import masked
from vit_jax.models.patches import to_float, to_patches
from vit_jax.training.classification import classification
from vit_jax.training.masked_patches import (
    TARGETS,
    downsized_colours,
    draw_corruption,
    masked_patches,
    mean_colour,
)
from vit_jax.training.mixup import Mixing, draw_box, mix_images
from vit_jax.training.objective import softmax_cross_entropy
from vit_jax.training.step import initial_state, make_update


def test_cross_entropy_with_smoothing_by_hand(rng):
    logits, labels = rng.normal(size=(5, CLASSES)), rng.integers(0, CLASSES, 5)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = 0.9 * np.eye(CLASSES)[labels] + 0.1 / CLASSES
    np.testing.assert_allclose(
        softmax_cross_entropy(logits, labels, 0.1), -(targets * log_p).sum(-1), rtol=1e-5
    )


def test_evaluation_counts_only_unmasked_examples(batch):
    model = tiny()
    params = random_params(model)
    objective = classification(model)
    sums = jax.jit(objective.evaluate)(params, batch)
    sums = jax.tree.map(np.asarray, sums)

    kept = batch["mask"]
    logits = model.apply({"params": params}, batch["image"][kept].astype(np.float32) / 127.5 - 1)
    logits, label = np.asarray(logits, np.float64), batch["label"][kept]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ranks = (logits > logits[np.arange(13), label][:, None]).sum(-1)

    assert sums["count"] == 13
    assert sums["loss"] == pytest.approx(-log_p[np.arange(13), label].sum(), rel=1e-4)
    assert sums["accuracy"] == (ranks == 0).sum()
    assert sums["top5_accuracy"] == (ranks < 5).sum()
    assert objective.summarize(sums)["accuracy"] == pytest.approx((ranks == 0).mean())


# ------------------------------------------------------------------------------------------ mixup


def test_mixup_blends_each_image_with_the_one_before(rng):
    images, labels = rng.normal(size=(6, 4, 4, 3)).astype(np.float32), np.arange(6)
    mixed, label, other, share = mix_images(images, labels, jax.random.key(3), Mixing(0.2))
    share = float(share)
    before = images[[5, 0, 1, 2, 3, 4]]
    np.testing.assert_allclose(mixed, share * images + (1 - share) * before, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(label, labels)
    np.testing.assert_array_equal(other, [5, 0, 1, 2, 3, 4])


def test_the_share_of_mixup_has_the_beta_distribution_folded():
    images, labels = jnp.zeros((1, 1, 1, 3)), jnp.zeros(1)
    draw = jax.vmap(lambda key: mix_images(images, labels, key, Mixing(0.2))[3])
    shares = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    expected = np.random.default_rng(0).beta(0.2, 0.2, 200_000)
    expected = np.maximum(expected, 1 - expected)
    assert shares.min() >= 0.5 and shares.max() <= 1
    for quantile in (0.2, 0.5, 0.8):
        assert np.quantile(shares, quantile) == pytest.approx(
            np.quantile(expected, quantile), abs=0.02
        )


def test_the_loss_with_mixup_is_that_of_the_mixed_targets(batch):
    model, key = tiny(), jax.random.key(5)
    params = random_params(model)
    objective = classification(model, label_smoothing=0.1, mixing=Mixing(0.5))
    total, metrics = objective.loss(params, batch, key, key)
    images = batch["image"].astype(np.float32) / 127.5 - 1
    share = float(
        mix_images(images[:1], batch["label"][:1], jax.random.fold_in(key, 0), Mixing(0.5))[3]
    )
    mixed = share * images + (1 - share) * np.roll(images, 1, axis=0)
    log_p = np.asarray(jax.nn.log_softmax(model.apply({"params": params}, mixed)), np.float64)
    hard = np.eye(CLASSES)[batch["label"]]
    soft = share * hard + (1 - share) * np.roll(hard, 1, axis=0)
    targets = 0.9 * soft + 0.1 / CLASSES
    assert 0.5 < share < 0.99
    assert float(total) == pytest.approx(-(targets * log_p).sum(-1).mean(), rel=1e-5)
    assert float(metrics["loss"]) == float(total)


# ----------------------------------------------------------------------------------------- CutMix

CUTMIX = Mixing(cutmix=1.0)


@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
def test_cutmix_puts_one_box_of_the_image_before_into_each(size):
    """Against NumPy: the same rectangle in all images, and labels whose share is its exact area."""
    images = np.random.default_rng(1).normal(size=(5, *size, 3)).astype(np.float32)
    labels, before, swapped = np.arange(5), np.array([4, 0, 1, 2, 3]), set()
    mix = jax.jit(lambda key: mix_images(images, labels, key, CUTMIX))
    for seed in range(120):
        mixed, first, second, share = map(np.asarray, mix(jax.random.key(seed)))
        box = (mixed != images).any((0, 3))
        if box.any():
            rows, columns = (np.flatnonzero(box.any(axis)) for axis in (1, 0))
            assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        np.testing.assert_array_equal(
            mixed, np.where(box[None, :, :, None], images[before], images)
        )
        pasted = box.mean(dtype=np.float64)
        is_less = pasted > 0.5  # the image before has the larger share
        swapped.add(bool(is_less))
        np.testing.assert_array_equal(first, before if is_less else labels)
        np.testing.assert_array_equal(second, labels if is_less else before)
        assert float(share) == pytest.approx(max(pasted, 1 - pasted), abs=1e-6)
    assert swapped == {False, True}


@pytest.mark.parametrize(("alpha", "height", "width"), [(1.0, 16, 16), (0.3, 10, 24)])
def test_boxes_of_cutmix_have_the_authors_distribution(alpha, height, width):
    """Against a simulation of the code of arXiv 1905.04899, which counts in pixels."""
    keys = jax.random.split(jax.random.key(0), 4000)
    found = np.asarray(jax.vmap(lambda key: draw_box(key, (height, width), alpha))(keys))
    rng, expected = np.random.default_rng(0), np.zeros((40_000, height, width), bool)
    for box in expected:
        cut = np.sqrt(1 - rng.beta(alpha, alpha))
        h, w = int(height * cut), int(width * cut)
        y, x = rng.integers(height), rng.integers(width)
        box[max(0, y - h // 2) : max(0, y + h // 2), max(0, x - w // 2) : max(0, x + w // 2)] = True
    areas, wanted = found.mean((1, 2)), expected.mean((1, 2))
    for quantile in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert np.quantile(areas, quantile) == pytest.approx(
            np.quantile(wanted, quantile), abs=0.03
        )
    np.testing.assert_allclose(found.mean(0), expected.mean(0), atol=0.04)  # by place
    assert (found.any((1, 2)).mean()) == pytest.approx(expected.any((1, 2)).mean(), abs=0.02)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_steps_take_cutmix_as_often_as_asked_for(probability):
    """A step of CutMix leaves every pixel whole, one of mixup none."""
    images = np.stack([np.zeros((4, 4, 3)), np.ones((4, 4, 3))]).astype(np.float32)
    mixing = Mixing(0.8, 1.0, probability)
    mix = jax.vmap(lambda key: mix_images(images, np.arange(2), key, mixing)[0])
    mixed = np.asarray(mix(jax.random.split(jax.random.key(2), 2000)))
    whole = np.isin(mixed, (0, 1)).all((1, 2, 3, 4)).mean()
    assert whole == pytest.approx(probability, abs=0.06)  # a weight of mixup can be nearly 1
    assert whole >= probability - 0.03


def test_the_share_of_mixup_is_the_same_beside_cutmix(rng):
    """Where a step with both takes mixup, it is that of a run without CutMix."""
    images, key = rng.normal(size=(6, 4, 4, 3)).astype(np.float32), jax.random.key(3)
    alone = mix_images(images, np.arange(6), key, Mixing(0.2))
    beside = mix_images(images, np.arange(6), key, Mixing(0.2, 1.0, 0.0))
    for a, b in zip(alone, beside, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_loss_with_cutmix_is_that_of_the_mixed_targets(batch):
    model, key = tiny(), jax.random.key(5)
    params = random_params(model)
    objective = classification(model, label_smoothing=0.1, mixing=CUTMIX)
    total, metrics = objective.loss(params, batch, key, key)
    images = batch["image"].astype(np.float32) / 127.5 - 1
    mixed = mix_images(images, batch["label"], jax.random.fold_in(key, 0), CUTMIX)[0]
    pasted = np.asarray(mixed != images).any((0, 3)).mean()  # some image differs in each pixel
    logits = np.asarray(model.apply({"params": params}, mixed), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    hard = np.eye(CLASSES)[batch["label"]]
    targets = 0.9 * ((1 - pasted) * hard + pasted * np.roll(hard, 1, axis=0)) + 0.1 / CLASSES
    assert 0.05 < pasted < 0.95
    assert float(total) == pytest.approx(-(targets * log_p).sum(-1).mean(), rel=1e-5)
    counted = np.roll(batch["label"], 1) if pasted > 0.5 else batch["label"]
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == counted).mean())


# ---------------------------------------------------------------------------------- class weights


@pytest.mark.parametrize("mixing", [Mixing(), Mixing(0.5), CUTMIX])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_with_class_weights_by_numpy(batch, mixing, loss):
    model, key, smoothing = tiny(), jax.random.key(5), 0.1
    params, weights = random_params(model), np.linspace(0, 2, CLASSES)
    weighted, plain = (
        classification(model, loss=loss, label_smoothing=smoothing, mixing=mixing, class_weights=w)
        for w in (tuple(weights), None)
    )
    images = batch["image"].astype(np.float32) / 127.5 - 1
    mixed, first, second, share = mix_images(
        images, batch["label"], jax.random.fold_in(key, 0), mixing
    )
    logits = np.asarray(model.apply({"params": params}, mixed), np.float64)
    p = 1 / (1 + np.exp(-logits))
    if loss == "softmax":
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 0
    for labels, part in ((np.asarray(first), share), (np.asarray(second), 1 - share)):
        targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
        terms = targets * np.log(p)
        if loss == "sigmoid":
            terms += (1 - targets) * np.log(1 - p)
        expected -= float(part) * (weights[labels] * terms.sum(-1)).mean()
    total, metrics = weighted.loss(params, batch, key, key)
    assert float(total) == float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    tests = [jax.tree.map(float, x.evaluate(params, batch)) for x in (weighted, plain)]
    assert tests[0] == tests[1]  # a test has no weights


# -------------------------------------------------------------------------- masked patch prediction


def patches_by_hand(images, size):
    """Patches of NumPy images, cut out one by one, row by row: (b, n, size, size, 3)."""
    return np.stack(
        [
            [
                image[y : y + size, x : x + size]
                for y in range(0, image.shape[0], size)
                for x in range(0, image.shape[1], size)
            ]
            for image in images
        ]
    )


def three_bits(pixels):
    """The 3-bit colour of the mean of pixels (…, 3), in float64, as one number."""
    mean = pixels.reshape(-1, 3).astype(np.float64).mean(0)
    red, green, blue = (int(channel // 32) for channel in mean)
    return red * 64 + green * 8 + blue


def test_patches_are_cut_row_by_row(rng):
    images = rng.integers(0, 256, (2, 8, 12, 3)).astype(np.uint8)
    np.testing.assert_array_equal(
        to_patches(jnp.asarray(images), (4, 4)), patches_by_hand(images, 4)
    )


def test_mean_three_bit_colours_by_numpy(rng):
    """Smooth and extreme patches, too: all 512 colours are in reach."""
    noise = rng.integers(0, 256, (40, 8, 8, 3))
    flat = np.broadcast_to(rng.integers(0, 256, (40, 1, 1, 3)), (40, 8, 8, 3))
    edge = np.broadcast_to(np.array([0, 31, 32, 255])[:, None, None, None], (4, 8, 8, 3))
    patches = np.concatenate([noise, flat, edge]).astype(np.uint8)
    expected = [three_bits(patch) for patch in patches]
    np.testing.assert_array_equal(mean_colour(jnp.asarray(patches)), expected)
    assert expected[-4:] == [0, 0, 73, 511]


def test_downsized_colours_by_numpy(rng):
    patches = rng.integers(0, 256, (5, 3, 16, 8, 3)).astype(np.uint8)
    expected = [
        [
            [
                three_bits(patch[y : y + 4, x : x + 2])
                for y in range(0, 16, 4)
                for x in range(0, 8, 2)
            ]
            for patch in row
        ]
        for row in patches
    ]
    np.testing.assert_array_equal(downsized_colours(jnp.asarray(patches)), expected)


def test_half_of_the_patches_are_corrupted_in_the_papers_proportions():
    n, draws = 50, 2000
    draw = jax.vmap(lambda key: draw_corruption(key, n, 0.5))
    selected, is_masked, source = map(np.asarray, draw(jax.random.split(jax.random.key(0), draws)))
    own = np.arange(n)
    assert (selected.sum(1) == 25).all()
    assert not (is_masked & ~selected).any() and not ((source != own) & ~selected).any()
    other = selected & ~is_masked & (source != own)
    kept = selected & ~is_masked & (source == own)
    shares = [x.sum() / selected.sum() for x in (is_masked, other, kept)]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.01)
    np.testing.assert_allclose(selected.mean(0), 0.5, atol=0.06)  # wherever in the image
    where = np.bincount((source - own)[other] % n, minlength=n)
    assert where[0] == 0 and where[1:].min() > 0.5 * where[1:].mean()  # any other patch


@pytest.mark.slow
def test_the_predictor_sees_the_corrupted_embeddings_alone(batch):
    """Against the encoder fed by hand with embeddings corrupted in NumPy."""
    vit = tiny(num_classes=0)
    predictor = masked.MaskedPatchPredictor(vit, 5)
    params = random_params(predictor)
    assert {"mask_token", "patch_head"} == set(params) - set(random_params(vit))
    images = to_float(batch["image"][:2])
    corruption = masked.Corruption(
        selected=jnp.ones((2, 4), bool),
        masked=jnp.array([[True, False, False, False], [False, True, True, False]]),
        source=jnp.array([[0, 3, 2, 3], [1, 1, 2, 3]]),
    )
    plain = np.asarray(predictor.vit.apply({"params": params}, images, corrupt=lambda x: x))
    embedded = {}

    def keep(x):
        embedded["x"] = np.asarray(x)
        return x

    vit.apply({"params": params}, images, corrupt=keep)
    expected = embedded["x"].copy()
    token = np.asarray(params["mask_token"])[0, 0]
    expected[0, 0], expected[0, 1] = token, embedded["x"][0, 3]
    expected[1, 0], expected[1, 1], expected[1, 2] = embedded["x"][1, 1], token, token
    encoded = vit.apply({"params": params}, images, corrupt=lambda x: jnp.asarray(expected))
    head = params["patch_head"]
    np.testing.assert_allclose(
        predictor.apply({"params": params}, images, corruption),
        np.asarray(encoded) @ head["kernel"] + head["bias"],
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        predictor.apply({"params": params}, images),
        plain @ head["kernel"] + head["bias"],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_masked_sums_by_numpy(batch, target):
    vit = tiny(num_classes=0)
    objective = masked_patches(vit, target=target)
    params = random_params(objective.model)
    sums = jax.tree.map(float, objective.evaluate(params, batch))

    loss, right, count = 0.0, 0.0, 0
    for image in batch["image"][batch["mask"]]:
        key = jax.random.fold_in(jax.random.key(0), int(image.astype(np.int64).sum()))
        corrupted = draw_corruption(key, 4, 0.5)
        one = jax.tree.map(lambda x: x[None], corrupted)
        images = image[None].astype(np.float32) / 127.5 - 1
        predicted = np.asarray(objective.model.apply({"params": params}, images, one), np.float64)
        for i in np.flatnonzero(corrupted.selected):
            patch, output = patches_by_hand(image[None], 8)[0, i], predicted[0, i]
            count += 1
            if target == "pixels":
                loss += ((output - (patch.astype(np.float64) / 127.5 - 1).ravel()) ** 2).mean()
                continue
            side = 8 if target == "mean_colour" else 2
            colours = [three_bits(block) for block in patches_by_hand(patch[None], side)[0]]
            for colour, logits in zip(colours, output.reshape(len(colours), 512), strict=True):
                loss += (np.log(np.exp(logits).sum()) - logits[colour]) / len(colours)
                right += (logits.argmax() == colour) / len(colours)
    assert sums["count"] == count == 26
    assert sums["loss"] == pytest.approx(loss, rel=1e-5)
    if target == "pixels":
        assert set(objective.summarize(sums)) == {"loss"}
    else:
        assert sums["accuracy"] == pytest.approx(right)


@pytest.mark.slow
def test_evaluation_corrupts_an_image_alike_wherever_it_stands(batch):
    objective = masked_patches(tiny(num_classes=0))
    params = random_params(objective.model)
    turned = jax.tree.map(lambda x: x[::-1], batch)
    sums = [jax.tree.map(float, objective.evaluate(params, b)) for b in (batch, turned)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)


def test_masked_training_learns_what_surrounds_a_patch():
    """Images of one colour each: what is masked can be told from what is not."""
    colours = np.random.default_rng(0).integers(0, 256, (32, 1, 1, 3))
    images = np.broadcast_to(colours, (32, IMAGE, IMAGE, 3)).astype(np.uint8)
    batch = {"image": images, "mask": np.ones(32, bool)}
    vit = tiny(num_classes=0, patch_size=4)
    objective = masked_patches(vit)
    optimizer = optax.adam(3e-3)
    state = initial_state(objective.model, optimizer, (IMAGE, IMAGE), jax.random.key(0))
    update = jax.jit(make_update(objective, optimizer, lambda count: 3e-3))
    evaluate = jax.jit(objective.evaluate)
    before = objective.summarize(evaluate(state.params, batch))
    for _ in range(150):
        state, metrics = update(state, batch, jax.random.key(1))
    after = objective.summarize(evaluate(state.params, batch))
    assert before["loss"] == pytest.approx(np.log(512), rel=1e-3)  # the new head is zero
    assert after["loss"] < 1.0 and after["accuracy"] > 0.8
    assert 0 <= float(metrics["accuracy"]) <= 1
