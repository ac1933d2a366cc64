"""The estimated memory against what XLA says of compiled programs, and what runs make of it."""

import math
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import pytest
from conftest import CLASSES, REPOSITORY, rows, tiny

from vit_jax.analysis.hardware import CHIPS, find_topology
from vit_jax.checkpoints.checkpoint import read_config
from vit_jax.common import host
from vit_jax.config.defaults import default
from vit_jax.evaluation.fewshot import feature_extractor
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.train import train
from vit_jax.models.params import count_parameters
from vit_jax.training import device_memory, fit_memory, parallel, setup
from vit_jax.training.classification import classification
from vit_jax.training.device_memory import smallest_memory
from vit_jax.training.fit_memory import (
    changes_with_same_results,
    choose_accumulate_steps,
    fit_evaluation,
    fit_training,
)
from vit_jax.training.memory import (
    Needs,
    estimate_needs,
    evaluation_needs,
    step_arguments,
)

MIB = 2**20


def config_of(variant="Nano/8", image_size=48, batch_size=16, **changes):
    config = default()
    config.model.variant, config.data.image_size = variant, image_size
    config.batch_size = config.eval_batch_size = batch_size
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("Nano/8", {}),
        ("Nano/8", {"model.dropout": 0.1, "optim.name": "adam", "optim.polyak": 0.9}),
        ("Nano/8", {"model.scan": True, "model.remat": "full"}),
        ("Nano/8", {"dtype": "bfloat16"}),
        ("Nano/8", {"accumulate_steps": 4}),
        ("Nano/8", {"optim.freeze": 3, "accumulate_steps": 2}),
        ("Nano/8", {"objective": "masked_patches", "masked.target": "downsized"}),
        ("R50x1", {"model.layers": (1, 1, 1, 1)}),
        pytest.param("R+Ti/16", {"model.depth": 4}, marks=pytest.mark.slow),
        pytest.param("Ti/16", {"model.depth": 4}, marks=pytest.mark.slow),
    ],
)
def test_a_step_takes_no_more_than_was_estimated(variant, changes):
    """The estimate is XLA's own number or above it, but not twice as much."""
    config = config_of(variant, 48 if variant == "Nano/8" else 96, **changes)
    [device, *_] = jax.devices()
    needs = estimate_needs(config, num_classes=CLASSES, devices=[device])
    run = setup.set_up(config, num_classes=CLASSES, total_steps=10)
    program = parallel.make_program(
        config, update=run.update, evaluate=run.objective.evaluate, key=run.key, devices=[device]
    )
    state, batch = step_arguments(config, run)
    steps = config.accumulate_steps or 1
    estimated = needs.step(config.batch_size, steps) - needs.fixed
    found = program.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    assert 0.5 * estimated < found <= estimated
    evaluated = jax.jit(run.objective.evaluate).lower(state.params, batch).compile()
    found = evaluated.memory_analysis().temp_size_in_bytes
    assert found <= needs.evaluated * config.batch_size


def test_a_step_that_trains_the_head_alone_takes_little():
    """As an evaluation does; the test above has what XLA says of the whole step."""
    config = config_of(**{"optim.freeze": "encoder", "optim.name": "adam"})
    [device, *_] = jax.devices()
    whole, needs = (
        estimate_needs(x, num_classes=CLASSES, devices=[device])
        for x in (config_of(**{"optim.name": "adam"}), config)
    )
    run = setup.set_up(config, num_classes=CLASSES, total_steps=10)
    program = parallel.make_program(config, update=run.update, key=run.key, devices=[device])
    memory = program.lower(*step_arguments(config, run)).compile().memory_analysis()
    parameters = 4 * count_parameters(step_arguments(config, run)[0].params)
    assert whole.fixed - needs.fixed == pytest.approx(2 * parameters, rel=0.01)
    assert memory.temp_size_in_bytes <= 16 * needs.image + needs.gradients < 16 * whole.image / 3
    assert needs.evaluated == pytest.approx(whole.evaluated, rel=0.5)


def test_the_state_and_the_batches_are_counted():
    """SGD's momentum is as large as the parameters; Adam has two such moments, in any type."""
    devices = jax.devices()[:1]
    small, large = (
        estimate_needs(config_of(batch_size=size), num_classes=CLASSES, devices=devices)
        for size in (16, 32)
    )
    batch = 16 * (48 * 48 * 3 + 4 + 1)  # the images, the labels and the mask
    held = round((large.fixed - small.fixed) / batch)
    assert large.fixed - small.fixed == held * batch
    assert held >= 4 + 2  # data.prefetch, the one in use and the next one
    state = small.fixed - held * batch
    assert state == pytest.approx(2 / 1.3 * small.gradients, abs=64)
    adam = config_of(**{"optim.name": "adam", "optim.polyak": 0.9})
    found = estimate_needs(adam, num_classes=CLASSES, devices=devices)
    assert found.fixed - held * batch == pytest.approx(2 * state, abs=64)


def test_a_sharded_state_takes_a_part_on_each_device():
    whole, part = (
        estimate_needs(
            config_of("Ti/16", 32, parallel=strategy), num_classes=CLASSES, devices=jax.devices()
        )
        for strategy in ("pmap", "sharded")
    )
    assert whole.gradients / 8 < part.gradients < whole.gradients / 6  # biases stay whole
    assert part.image == whole.image


def test_the_fewest_micro_batches_that_fit_are_taken():
    needs = Needs(fixed=100, gradients=10, image=10, evaluated=1)
    assert needs.step(12, 1) == 100 + 10 + 120
    assert choose_accumulate_steps(needs, 12, memory=230) == 1
    assert choose_accumulate_steps(needs, 12, memory=229) == 2  # 100 + 20 + 60
    assert choose_accumulate_steps(needs, 12, memory=179) == 3
    assert choose_accumulate_steps(needs, 12, memory=130) == 12
    assert choose_accumulate_steps(needs, 12, memory=129) is None


@pytest.fixture
def limit(monkeypatch):
    """A function that sets the memory of every device, in bytes; None if it is unknown."""

    def set_to(size):
        memory = None if size is None else math.ceil(size)
        monkeypatch.setattr(fit_memory, "smallest_memory", lambda: memory)

    return set_to


@pytest.fixture
def settings(settings):
    """The run's images are so large that they take more memory than the parameters."""
    settings.data.image_size = 64
    return settings


def needs_of(settings):
    return estimate_needs(settings, num_classes=3, devices=jax.devices())


def without_time(workdir):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(workdir)]


def test_a_run_takes_micro_batches_by_itself(settings, tmp_path, limit, caplog):
    """Sixteen images, two a device: one at a time fits. The run is that with accumulate_steps=2."""
    caplog.set_level("INFO")
    settings.update(total_steps=2)
    needs = needs_of(settings)
    assert needs.step(2, 2) < needs.step(2, 1)
    limit(needs.step(2, 2))
    train(settings, tmp_path / "by itself")
    assert "each batch is computed in 2 micro-batches" in caplog.text
    assert "(accumulate_steps=2)" in caplog.text
    assert read_config(tmp_path / "by itself").accumulate_steps == 2
    limit(2**40)
    settings.accumulate_steps = 2
    train(settings, tmp_path / "given")
    assert without_time(tmp_path / "by itself") == without_time(tmp_path / "given")


def test_a_run_that_fits_is_as_without_micro_batches(settings, tmp_path, caplog):
    caplog.set_level("INFO")
    settings.update(total_steps=2)
    train(settings, tmp_path / "left open")
    assert "By the estimate" not in caplog.text
    settings.accumulate_steps = 1
    train(settings, tmp_path / "given")
    assert without_time(tmp_path / "left open") == without_time(tmp_path / "given")


def test_a_resumed_run_keeps_its_micro_batches(settings, tmp_path, limit):
    """With dropout, other micro-batches would be other random numbers."""
    needs = needs_of(settings)
    settings.update(total_steps=4, accumulate_steps=2)
    settings.optim.decay = "constant"
    train(settings, tmp_path / "whole")
    settings.update(total_steps=2, accumulate_steps=None)
    limit(needs.step(2, 2))
    train(settings, tmp_path / "resumed")
    limit(2**40)
    settings.update(total_steps=4)
    train(settings, tmp_path / "resumed")
    assert read_config(tmp_path / "resumed").accumulate_steps == 2
    assert without_time(tmp_path / "whole")[-1] == without_time(tmp_path / "resumed")[-1]


def test_a_resumed_run_takes_more_micro_batches_where_there_is_less_memory(
    settings, tmp_path, limit, caplog
):
    settings.optim.decay = "constant"
    settings.update(total_steps=1)
    train(settings, tmp_path)
    assert read_config(tmp_path).accumulate_steps == 1
    limit(needs_of(settings).step(2, 2))
    settings.update(total_steps=2)
    assert train(settings, tmp_path)["step"] == 2
    assert read_config(tmp_path).accumulate_steps == 2
    assert "took accumulate_steps=1, and takes 2 from here" in caplog.text


@pytest.mark.parametrize(
    ("given", "preferred", "expected", "says"),
    [(None, 2, 2, False), (None, 3, 1, True), (2, 1, 2, False), (None, None, 1, False)],
)
def test_an_earlier_number_of_micro_batches_is_kept_if_it_can_be(
    settings, limit, caplog, given, preferred, expected, says
):
    """Two images a device can't be cut into three parts; what the user sets comes first."""
    settings.accumulate_steps = given
    for memory in (2**40, None):
        limit(memory)
        fitted = fit_training(settings, num_classes=3, preferred=preferred)
        assert fitted.accumulate_steps == expected
        assert ("from here" in caplog.text) == says
        caplog.clear()


def test_processes_with_different_cpus_estimate_the_same(settings, monkeypatch):
    """The estimate is that of the most threads, whichever process makes it."""
    few, many = host.Process(1, 1, 1), host.Process(2, 2, 3)
    monkeypatch.setattr(host, "all_processes", lambda: (few, many))
    found = []
    for own in (few, many):
        monkeypatch.setattr(host, "own_process", lambda own=own: own)
        found.append(needs_of(settings))
    settings.data.threads = 2  # the most on a CPU
    assert found == [needs_of(settings)] * 2
    settings.data.threads = 1
    assert needs_of(settings).fixed < found[0].fixed


def test_what_does_not_fit_is_refused_with_what_would(settings, tmp_path, limit):
    settings.data.image_size = 128
    settings.model.update(width=64, mlp_dim=256)
    needs = needs_of(settings)
    limit(0.9 * needs.step(2, 2))
    with pytest.raises(ValueError, match="The run doesn't fit into the memory") as error:
        train(settings, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert "What fits: " in message and "--config.data.image_size=96" in message
    settings.data.image_size = 96
    assert fit_training(settings, num_classes=3).accumulate_steps in (1, 2)


def test_a_number_of_micro_batches_is_as_given(settings, limit, caplog):
    settings.accumulate_steps = 1
    needs = needs_of(settings)
    limit(needs.step(2, 2))
    assert fit_training(settings, num_classes=3).accumulate_steps == 1
    assert "1 micro-batches, and" in caplog.text and "raise accumulate_steps" in caplog.text


def test_evaluation_batches_are_reduced_and_give_the_same_results(
    settings, tmp_path, limit, caplog
):
    caplog.set_level("INFO")
    summary = train(settings, tmp_path / "run")
    settings.update(job="evaluate", eval_batch_size=64, init_from=str(tmp_path / "run"))
    for size in (2**40, 1_000_000):
        limit(size)
        result = evaluate(settings, tmp_path / "evaluated")
        assert result["test_accuracy"] == summary["test_accuracy"]
        assert result["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
        assert ("with the same results" in caplog.text) == (size == 1_000_000)


def test_an_evaluation_takes_as_many_images_as_fit(settings, limit, caplog):
    settings.eval_batch_size = 64
    model = tiny()
    params = jax.eval_shape(model.init, jax.random.key(0), np.ones((1, 16, 16, 3)))["params"]
    for function in (feature_extractor(model), classification(model).evaluate):
        held, image = evaluation_needs(settings, function, params, 16, jax.devices())
        assert held == 4 * count_parameters(params)
        for size, expected in ((8, 64), (7.9, 56), (2, 16), (1, 8)):
            limit(held + size * image + 1)
            assert fit_evaluation(settings, function, params, 16).eval_batch_size == expected
        assert "It takes one image a device" not in caplog.text
        for memory in (held + 0.9 * image, 0):
            limit(memory)
            assert fit_evaluation(settings, function, params, 16).eval_batch_size == 8
            assert "It takes one image a device at once (eval_batch_size=8)" in caplog.text
            caplog.clear()


def test_unknown_memory_changes_nothing(settings, limit, caplog):
    limit(None)
    fitted = fit_training(settings, num_classes=3)
    assert (fitted.accumulate_steps, fitted.eval_batch_size) == (1, settings.eval_batch_size)
    assert "JAX doesn't say how much memory a cpu has" in caplog.text


def test_changes_with_the_same_results():
    """Without a loop over the blocks, XLA drops rematerialisation on a CPU."""
    cpus = jax.devices()
    gpu = types.SimpleNamespace(platform="gpu")
    sharded, dots, full = {"parallel": "sharded"}, {"model.remat": "dots"}, {"model.remat": "full"}
    assert list(changes_with_same_results(config_of(), cpus)) == [sharded]
    in_a_loop = config_of(**{"model.scan": True})
    assert list(changes_with_same_results(in_a_loop, cpus)) == [sharded, dots, full]
    assert list(changes_with_same_results(config_of(), [gpu])) == [dots, full]
    some = config_of(**{"model.remat": "dots"})
    assert list(changes_with_same_results(some, [gpu])) == [full]
    assert list(changes_with_same_results(config_of("R50x1"), [gpu])) == []


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("variant", ["R50x1", "Nano/8"])
def test_every_kind_of_model_is_estimated_for_devices_that_fuse(variant, platform):
    """XLA keeps less of a ViT there than on a CPU. The device isn't there."""
    device = types.SimpleNamespace(platform=platform, compute_capability="8.0")
    config = config_of(variant, **({"model.layers": (1,)} if variant[0] == "R" else {}))
    found = estimate_needs(config, num_classes=5, devices=[device])
    on_cpu = estimate_needs(config, num_classes=5, devices=jax.devices()[:1])
    assert 0 < found.step(16, 1) <= on_cpu.step(16, 1)


# ------------------------------------------------------------------------- what a device has


@pytest.mark.parametrize(
    ("line", "folder", "files"),
    [
        ("0::/a/b", "a", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/a/b",
            "memory/a",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_control_groups_limit_the_memory(tmp_path, monkeypatch, line, folder, files):
    """The group above this process's own has the limit; files that were read make room."""
    (tmp_path / folder / "b").mkdir(parents=True)
    (tmp_path / folder / "b" / files[0]).write_text("max\n")
    for name, text in zip(files, ("1000000\n", "500000\n", ""), strict=True):
        (tmp_path / folder / name).write_text(text)
    (tmp_path / folder / "memory.stat").write_text(f"anon 7\n{files[2]} 300000\n")
    (tmp_path / "cgroup").write_text(f"{line}\n")
    monkeypatch.setattr(device_memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(device_memory, "_OWN_CGROUPS", tmp_path / "cgroup")
    expected = int(device_memory.HOST_SHARE * 800_000) // 8  # of each of eight devices
    assert device_memory.device_memory() == expected


@pytest.fixture
def processes(monkeypatch):
    """A function that makes this process one of three; the memory of the two others is given."""
    here, elsewhere = host.Process(1, 1, 1), host.Process(2, 1, 1)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(host, "own_process", lambda: here)
    monkeypatch.setattr(host, "all_processes", lambda: (here, here, elsewhere))

    def pretend(own, others):
        monkeypatch.setattr(device_memory, "device_memory", lambda: own)
        monkeypatch.setattr(
            device_memory.multihost_utils,
            "process_allgather",
            lambda own: np.array([own, *others], np.int32),
        )

    return pretend


def test_processes_of_one_host_share_its_memory(processes):
    """Two of three processes share 3000 MiB; all get the smallest share."""
    processes(3000 * MIB, [1500, 4000])
    assert smallest_memory() == 1500 * MIB
    processes(3000 * MIB, [1500, 700])
    assert smallest_memory() == 700 * MIB


def test_memory_that_one_process_does_not_know_is_unknown(processes):
    processes(3000 * MIB, [1500, -1])
    assert smallest_memory() is None
    processes(None, [1500, 700])
    assert smallest_memory() is None


@pytest.mark.parametrize("stats", [None, {}, {"bytes_limit": 5 * MIB}])
def test_the_memory_of_a_gpu_is_never_that_of_the_host(monkeypatch, stats):
    gpu = types.SimpleNamespace(
        platform="gpu", device_kind="NVIDIA H100 80GB HBM3", memory_stats=lambda: stats
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    limit = stats["bytes_limit"] if stats else None
    assert device_memory.device_memory() == limit
    assert find_topology("local").memory == (limit or int(CHIPS[gpu.device_kind].memory))
    gpu.device_kind = "another"
    if limit is None:
        with pytest.raises(ValueError, match="JAX doesn't say how much memory a another has"):
            find_topology("local")


@pytest.mark.slow
def test_a_limit_of_the_process_is_its_memory():
    code = """
    import resource, psutil
    from vit_jax.training.device_memory import HOST_SHARE, device_memory
    import jax
    jax.devices()
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
    assert 0.7 * HOST_SHARE * 2**30 < device_memory() <= HOST_SHARE * 2**30
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
