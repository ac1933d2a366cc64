"""The head that a run starts with: kept for the same classes, and said."""

import logging

import numpy as np
import pytest
from conftest import TINY, random_checkpoint, write_jpegs

import vit_jax
from vit_jax.config.defaults import default
from vit_jax.jobs.initial_head import choose_head
from vit_jax.jobs.train import train
from vit_jax.weights.api import load, save

COUNTS = {"a": 20, "b": 20}


def configuration(**changes):
    config = default()
    config.model.update(TINY)
    config.data.update(image_size=16, check=False)
    config.update(batch_size=8, eval_batch_size=8, total_steps=1, log_every=1, eval_every=0)
    config.optim.lr = 1e-9
    config.update_from_flattened_dict(changes)
    return config


def weights(names=("a", "b"), num_classes=None, **attributes):
    sizes = {key: x for key, x in TINY.items() if key != "variant"} | attributes
    found = random_checkpoint("Ti/16", num_classes or len(names), **sizes)
    return found._replace(path="W", class_names=tuple(names))


@pytest.mark.parametrize(
    ("init_head", "own", "is_kept", "message"),
    [
        (None, weights("ab"), True, "W is kept for the 2 classes, which are paired by name."),
        (None, weights("ba"), True, "by name. Its logits are put into the order of the data's"),
        (None, weights("abc"), False, "classes is new: that of W, for 3 classes, is not used."),
        (None, weights("ac"), False, "classes is new: that of W, for 2 classes, is not used."),
        (None, weights((), 2), False, "that of W, for 2 classes without names, is not used."),
        ("new", weights("ab"), False, "is new: init_head='new', and that of W is not used."),
        ("keep", weights("ba"), True, "are put into the order of the data's classes."),
        ("keep", weights("abc"), True, "Of its 3 logits, those of these classes are kept."),
        ("keep", weights("BA"), True, "paired by whole name. Its logits"),
        ("keep", weights((), 2), True, "by number. Nothing says that the order is the same."),
    ],
)
def test_every_choice_is_told(init_head, own, is_kept, message, caplog):
    caplog.set_level(logging.INFO)
    config = configuration()
    config.init_head = init_head
    found = choose_head(config, own, ("a", "b"))
    (line,) = caplog.messages
    assert message in line and found.is_kept == is_kept
    names = [name.lower() for name in own.class_names] or ["a", "b"]
    columns = [names.index(name) for name in "ab"] if is_kept else slice(None)
    kernel = own.params["head"]["kernel"][:, columns]
    np.testing.assert_array_equal(found.pretrained.params["head"]["kernel"], kernel)


@pytest.mark.parametrize(
    ("own", "changes", "message"),
    [
        (weights("ac"), {}, "for these classes. W has 2 classes .* checkpoint's: b"),
        (weights((), 3), {}, "for these classes. W has 3 classes, but"),
        (weights(())._replace(params={}), {}, "W has none"),
        (weights("ab"), {"model.pool": "gap"}, "a model with pool='token', not 'gap'"),
        (weights("ab"), {"model.pre_logits": True}, "pre_logits=False, not True"),
        (weights("ab", pre_logits=True), {"model.pre_logits": False}, "=True, not False"),
    ],
)
def test_a_head_that_cannot_be_kept(own, changes, message, caplog):
    """It is refused if it was asked for; otherwise the head is new."""
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match=f"head .*can.* be kept.*{message}.*init_head='new'"):
        choose_head(configuration(init_head="keep", **changes), own, ("a", "b"))
    found = choose_head(configuration(**changes), own, ("a", "b"))
    assert not found.is_kept
    assert caplog.messages[-1].startswith("The head for 2 classes is new: ")


def test_layers_that_predict_patches_are_new(caplog):
    caplog.set_level(logging.INFO)
    assert not choose_head(configuration(), weights("ab"), None).is_kept
    assert caplog.messages == [
        "The layers that predict patches are initialised at random: those of W are not used."
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_jpegs(tmp_path_factory.mktemp("images"), COUNTS)


def test_a_run_goes_on_with_the_loss_of_its_weights(folder, tmp_path):
    """One step with a rate of 1e-9 changes nothing."""
    data = {"data.name": str(folder)}
    first = configuration(total_steps=20, **data)
    first.optim.lr = 0.1
    before = train(first, tmp_path / "run")["test_loss"]
    after = train(configuration(init_from=str(tmp_path / "run"), **data), tmp_path / "next")
    assert after["test_loss"] == pytest.approx(before, abs=1e-6)
    assert abs(before - np.log(2)) > 1e-3  # the loss with a new head, of zeros


def test_pre_logits_go_with_the_head_and_the_run_is_resumed(folder, tmp_path):
    save(weights("ba", pre_logits=True), tmp_path / "weights")
    original = load(tmp_path / "weights")
    changes = {"data.name": str(folder), "init_from": str(tmp_path / "weights")}
    train(configuration(**changes), tmp_path / "kept")
    kept = load(tmp_path / "kept")
    for name in ("kernel", "bias"):
        before, after = (np.asarray(x.params["pre_logits"][name]) for x in (original, kept))
        np.testing.assert_allclose(after, before, atol=1e-6)
    head = np.asarray(original.params["head"]["kernel"])[:, ::-1]
    np.testing.assert_allclose(np.asarray(kept.params["head"]["kernel"]), head, atol=1e-6)
    assert train(configuration(total_steps=2, **changes), tmp_path / "kept")["step"] == 2


def test_fit_keeps_the_head_too(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 16, 16, 3), np.uint8)
    labels = np.array(["a", "b"])[np.arange(24) % 2]
    own = weights("ba")
    save(own, tmp_path / "weights")
    config = configuration()
    for init_head, columns in ((None, [1, 0]), ("new", None)):
        fitted = vit_jax.fit(
            images, labels, config=config, init_from=tmp_path / "weights", init_head=init_head
        )
        kernel = np.asarray(fitted.classifier.checkpoint.params["head"]["kernel"])
        expected = own.params["head"]["kernel"][:, columns] if columns else np.zeros((16, 2))
        np.testing.assert_allclose(kernel, expected, atol=1e-6)
