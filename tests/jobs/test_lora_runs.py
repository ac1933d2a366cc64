"""Runs that train LoRA: what they start from, resume, store, and what opens it."""

import logging

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import TINY, random_params, tiny
from flax.traverse_util import flatten_dict

import vit_jax
from vit_jax.checkpoints.checkpoint import find_checkpoint, read_checkpoint
from vit_jax.jobs.train import train
from vit_jax.models.lora import split_lora
from vit_jax.weights.api import load_params, save_params

LORA = dict(lora_rank=2, lora_alpha=3.0)


@pytest.fixture
def settings(settings):
    settings.optim.update(name="adam", lr=0.02, decay="constant", weight_decay=0.1)
    settings.update(eval_every=0)
    settings.checkpoint.every = 0
    return settings


@pytest.fixture
def pretrained(settings, tmp_path):
    """A file of a model without LoRA; `settings` are of a run that starts from it."""
    sizes = {name: x for name, x in TINY.items() if name != "variant"}
    model = tiny(num_classes=3, **sizes)
    save_params(random_params(model), tmp_path / "p.npz", variant="Ti/16", image_size=16, **sizes)
    settings.update(init_from=str(tmp_path / "p.npz"), total_steps=2)
    settings.model.update(LORA)
    return tmp_path / "p.npz"


def flat(tree):
    return {name: np.asarray(x) for name, x in flatten_dict(tree, sep="/").items()}


def logits(model, params, images):
    return jax.jit(lambda params: model.apply({"params": params}, images))(params)


def stored(workdir, name="params"):
    """The arrays of the newest checkpoint, as Orbax alone reads them."""
    return ocp.PyTreeCheckpointer().restore(find_checkpoint(workdir) / name)


def test_a_run_keeps_the_base_and_resumes_and_opens_merged(settings, pretrained, tmp_path, caplog):
    settings.optim.polyak = 0.5
    settings.checkpoint.best = "test_loss"
    with caplog.at_level(logging.INFO):
        settings.total_steps = 4
        train(settings, tmp_path / "whole")
        settings.total_steps = 2
        train(settings, tmp_path / "parts")
    own = flat(stored(tmp_path / "whole"))
    trained = {k for k in own if k.startswith("head/") or "/lora_" in k}
    count = sum(own[name].size for name in trained)
    assert f"{sum(x.size for x in own.values()):,} parameters, of which {count:,}" in caplog.text
    paths, _ = zip(*jax.tree.leaves_with_path(stored(tmp_path / "whole", "optimizer")), strict=True)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    assert {name.split("/mu/")[1] for name in names if "/mu/" in name} == trained

    settings.total_steps = 4
    train(settings, tmp_path / "parts")  # bit for bit as without a pause
    jax.tree.map(
        np.testing.assert_array_equal,
        *(
            [stored(tmp_path / x, name) for name in ("params", "optimizer", "average")]
            for x in ("whole", "parts")
        ),
    )
    settings.update(total_steps=6)
    settings.model.lora_rank = 1
    with pytest.raises(ValueError, match=r"model\.lora_rank was 2, is 1"):
        train(settings, tmp_path / "parts")

    before = flat(vit_jax.load(pretrained).params)
    for name in before:
        assert np.array_equal(own[name], before[name]) != name.startswith("head"), name

    # Opened, it has the sums in its kernels, whether it is read as a whole or block by block.
    opened = vit_jax.load(tmp_path / "whole")
    assert opened.config.model.lora_rank is None and opened.config.model.lora_alpha is None
    average = flat(stored(tmp_path / "whole", "average"))
    for found, raw in ((opened, own), (opened.averaged(), average)):
        merged = flat(found.params)
        assert set(merged) == set(before)
        for name, x in merged.items():
            where, _, kind = name.rpartition("/")
            expected = np.float64(raw[name])
            if kind == "kernel" and f"{where}/lora_b" in raw:
                a, b = (np.float64(raw[f"{where}/lora_{m}"]) for m in "ab")
                assert np.abs(b).max() > 0
                expected = expected + 1.5 * np.einsum("dr,r...->d...", a, b)
            np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-7, err_msg=name)
    at_once = read_checkpoint(tmp_path / "whole")
    for name, x in flat(at_once.params).items():
        np.testing.assert_array_equal(x, flat(opened.params)[name])
    best = vit_jax.load(f"{tmp_path / 'whole'}@best")
    assert set(flat(best.params)) == set(before)


def test_files_have_the_logits_of_the_model_with_lora(settings, pretrained, tmp_path, rng):
    settings.optim.lr = 0.1
    train(settings, tmp_path / "run")
    checkpoint = vit_jax.load(tmp_path / "run")
    images = rng.uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    own, plain = stored(tmp_path / "run"), checkpoint.model()
    expected = logits(checkpoint.model(**LORA), own, images)
    base = logits(plain, split_lora(own)[0], images)
    assert np.abs(base - expected).max() > 1e-3
    for name in ("model.npz", "model.safetensors", "orbax"):
        vit_jax.save(checkpoint, tmp_path / name)
        params = load_params(tmp_path / name)
        assert "lora" not in str(jax.tree.structure(params))
        found = logits(plain, params, images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_run_starts_from_what_lora_trained_before(settings, pretrained, tmp_path):
    settings.optim.lr = 0.1
    train(settings, tmp_path / "first")
    settings.init_from = str(tmp_path / "first")
    settings.optim.lr = 1e-9  # what it starts with hardly changes
    settings.model.update(lora_rank=1, lora_alpha=None)
    train(settings, tmp_path / "second")
    merged, own = flat(vit_jax.load(tmp_path / "first").params), flat(stored(tmp_path / "second"))
    lora = {name: own.pop(name) for name in list(own) if "/lora_" in name}
    assert {x.shape[1] for name, x in lora.items() if name.endswith("lora_a")} == {1}
    for name, x in own.items():
        np.testing.assert_allclose(x, merged[name], rtol=0, atol=1e-6, err_msg=name)
