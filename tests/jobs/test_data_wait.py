"""A run says when its devices wait for images."""

import logging
import time

import jax
import jax.numpy as jnp
import pytest

from vit_jax.jobs import data_wait


@jax.jit
def slow(x):
    return jax.lax.fori_loop(0, 200, lambda _, x: x @ x / jnp.linalg.norm(x), x)


@pytest.mark.parametrize(("reading", "is_told"), [(0.1, True), (0.0, False)])
def test_waiting_for_images_is_told_once(monkeypatch, caplog, reading, is_told):
    monkeypatch.setattr(data_wait, "_WINDOW", 0.4)
    x = jax.random.normal(jax.random.key(0), (300, 300))
    wait = data_wait.DataWait()
    caplog.set_level(logging.WARNING)
    jax.block_until_ready(slow(x))
    begin = time.monotonic()
    while time.monotonic() - begin < 1.5:
        # Images come late and the step is short, or the other way round.
        step = x + 1 if is_told else slow(x)
        with wait.reading({"loss": step}):
            time.sleep(reading)
        jax.block_until_ready(step)
    assert caplog.text.count("The devices wait for images") == is_told
