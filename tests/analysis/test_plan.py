"""Plans against counts by hand, and steps that are compiled for devices that aren't there."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import CLASSES, IMAGE, REPOSITORY

import vit_jax.plan as plan_command
from vit_jax.analysis import compiling, hardware, planning
from vit_jax.analysis.compiling import Program, temporaries_in
from vit_jax.analysis.plan_table import format_plan, with_prefix
from vit_jax.analysis.planning import dataset_size, plan
from vit_jax.analysis.suggestions import estimate_batch, find_largest_batch
from vit_jax.config.defaults import default
from vit_jax.plan import main
from vit_jax.training import fit_memory, setup
from vit_jax.training.fit_memory import fit_training
from vit_jax.training.memory import bytes_per_device, estimate_needs, step_arguments


def test_a_step_takes_as_long_as_its_slowest_part():
    chip = hardware.Chip(
        memory=1e9,
        peak_flops=200e12,
        memory_bandwidth=800e9,
        interconnect_bandwidth=100e9,
    )
    assert hardware.roofline(50e12, 80e9, 5e9, chip) == {
        "compute": 0.25,
        "memory": 0.1,
        "interconnect": 0.05,
        "step": 0.25,
    }
    assert hardware.roofline(1e12, 80e9, 20e9, chip)["step"] == 0.2


def test_batches_are_estimated_along_a_line():
    assert estimate_batch([(64, 1000 + 64 * 50)], 1000, 10_000, 8) == 176  # of 180
    assert estimate_batch([(64, 5200), (32, 3600)], 0, 10_000, 8) == 160
    assert estimate_batch([(64, 90_000)], 20_000, 10_000, 8) == 0


@pytest.mark.parametrize(
    ("batch", "tries", "largest"), [(64, 1, 168), (8, 2, 176), (4096, 1, 176), (176, 0, 176)]
)
def test_the_largest_batch_is_compiled(batch, tries, largest):
    """One example takes 50 bytes, and all of them 300 more; 95 % of the memory is enough."""
    compiled = []

    def program(size):
        total = 1300 + 50 * size
        return Program(0.0, 1000, total - 1000, total, total <= 10_200)

    def compile_at(size):
        compiled.append(size)
        return program(size)

    found = find_largest_batch(
        compile_at, (batch, program(batch)), fixed=1000, memory=10_200, multiple=8
    )
    assert found == (largest, program(largest))
    assert len(compiled) == tries


def test_what_xla_says_of_too_little_memory_is_understood():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (49.33G) exceeds available HBM (15.75G)."
    )
    assert temporaries_in(message) == int(49.33 * 2**30)
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm."
    )
    assert temporaries_in(message) == int(512.5 * 2**20)
    assert temporaries_in("INTERNAL: something else") is None


def settings_of(folder, **changes):
    settings = default()
    settings.model.update(variant="Ti/16", width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
    settings.data.update(name=str(folder), image_size=IMAGE)
    settings.update(batch_size=32, eval_batch_size=32, total_steps=10, **changes)
    return settings


def planned(**changes):
    settings = settings_of("nowhere", **changes)
    return plan(settings, "local", num_classes=CLASSES, images=None)


@pytest.fixture(scope="module")
def report():
    return planned()


def test_the_step_of_a_tiny_model_is_planned(report):
    assert (report["chips"], report["total_steps"], report["fits"]) == (8, 10, True)
    size = 4 * report["parameters"]
    reduced = report["collectives"]["all-reduce"]
    assert size < reduced["bytes"] < size + 64  # the gradient and a few metrics
    assert reduced["sent"] == pytest.approx(2 * 7 / 8 * reduced["bytes"])
    needed = 2 * size + 4 * (IMAGE * IMAGE * 3 + 5)  # parameters, momentum, 4 images of 32
    assert needed < report["arguments_bytes"] < needed + 64
    # But for the images, of which there is no gradient.
    embedding = 2 * (IMAGE // 8) ** 2 * (8 * 8 * 3) * 24 / report["flops_per_image"]
    assert report["compiled_flops_ratio"] == pytest.approx(1 - embedding, rel=1e-3)
    assert report["step_seconds"] is report["run_hours"] is None  # a CPU's peaks are unknown


def test_micro_batches_are_all_counted(report):
    """Of one image, the head's matmul is no matmul any more."""
    ratio = planned(accumulate_steps=4)["compiled_flops_ratio"] / report["compiled_flops_ratio"]
    assert ratio == pytest.approx(1, rel=0.01)


@pytest.mark.slow
def test_a_sharded_state_is_planned():
    settings = settings_of("nowhere", parallel="sharded")
    settings.model.update(width=128, mlp_dim=128)  # its kernels are large enough to be sharded
    found = plan(settings, "local", num_classes=CLASSES, images=None)
    assert "all-gather" in found["collectives"]
    run = setup.set_up(settings, num_classes=CLASSES, total_steps=10)
    state, batch = bytes_per_device(settings, *step_arguments(settings, run), 8)
    assert batch == 4 * (IMAGE * IMAGE * 3 + 5)
    assert found["parameters"] < state < 0.5 * 8 * found["parameters"]  # an eighth of 8, and biases
    assert found["arguments_bytes"] == pytest.approx(state + batch, abs=64)


def test_what_does_not_fit_gets_suggestions(monkeypatch):
    """A compiler that says so, for a state of 100 bytes and 10 bytes an example and device."""

    def compiled(*unused, **options):
        return Program(0.0, 100, 1000, 1100, fits=False)

    topology = hardware.find_topology("local")._replace(memory=1050)
    monkeypatch.setattr(planning, "find_topology", lambda name: topology)
    monkeypatch.setattr(compiling, "compile_lowered", compiled)
    found = planned(accumulate_steps=1, model={"scan": True})
    assert not found["fits"]
    assert found["collectives"] is found["compiled_flops_per_step"] is None
    changes = [x["change"] for x in found["suggestions"]]
    assert "batch_size" in changes[0]
    assert {"parallel": "sharded"} in changes
    assert {"accumulate_steps": 2} in changes
    assert [x for x in changes if "model.remat" in x] == [
        {"model.remat": "dots"},
        {"model.remat": "full"},
    ]
    assert any("does not fit" in line for line in format_plan(found))


@pytest.mark.parametrize("fits", [True, False])
def test_a_plan_has_the_micro_batches_that_a_run_would_take(monkeypatch, fits):
    """Four images a device fit in two parts, or don't fit: then they are planned one by one."""
    settings = settings_of("nowhere")
    settings.data.image_size = 64
    local = hardware.find_topology("local")
    needs = estimate_needs(settings, num_classes=CLASSES, devices=local.devices)
    memory = int(needs.step(4, 2)) + 1 if fits else 1
    monkeypatch.setattr(planning, "find_topology", lambda name: local._replace(memory=memory))
    found = plan(settings, "local", num_classes=CLASSES, images=None)
    assert found["accumulate_steps"] == (2 if fits else 4)
    assert found["estimated_bytes"] == round(needs.step(4, found["accumulate_steps"]))
    assert found["fits"] == fits
    assert found["total_bytes"] < found["estimated_bytes"]
    monkeypatch.setattr(fit_memory, "smallest_memory", lambda: memory)
    if fits:
        assert fit_training(settings, num_classes=CLASSES).accumulate_steps == 2


CONFIG = f"{REPOSITORY}/configs/pretrain.py:Nano/8,"
TINY = [
    "--config.model.depth=1",
    "--config.model.width=24",
    "--config.model.mlp_dim=32",
    "--config.data.image_size=16",
    "--config.batch_size=32",
    "--config.eval_batch_size=32",
    "--config.model.num_heads=2",
]


@pytest.mark.slow
def test_the_command_counts_the_images_of_a_folder(capsys, image_folder):
    main([f"--config={CONFIG}{image_folder}", *TINY, "--topology=local", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["total_steps"] == round(25 * 68 / 32)  # 85 % of 80 images
    embedding = 24 * (8 * 8 * 3 + 1) + 24 + 5 * 24  # patches, class token, positions
    block = 4 * 24 * 25 + 24 * 33 + 32 * 25 + 4 * 24  # attention, MLP, two norms
    assert report["parameters"] == embedding + block + 2 * 24 + 3 * 25  # norm and head


def test_the_table_shows_a_report(report):
    lines = format_plan(report)
    assert lines[0] == "Ti/16 on local (8 x cpu): 32 images a step, pmap, float32"
    assert all(len(line) <= 100 for line in lines)
    rows = dict(line.split("  ", 1) for line in lines[1:])
    assert rows["parameters"].strip() == f"{report['parameters']:,}"
    assert report["trained_parameters"] == report["parameters"]
    frozen = "\n".join(format_plan(report | {"trained_parameters": 1234}))
    assert f"{report['parameters']:,}, of which 1,234 are trained\n" in frozen
    assert rows["memory"].endswith("a chip: fits")
    assert rows["estimated"].endswith("a chip, with accumulate_steps=1")
    assert "peaks of a cpu are unknown" in rows["step"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 "),
        (999, "999 "),
        (1234, "1.234 k"),
        (1.0791578e14, "107.9 T"),
        (2.5e19, "2.5e+04 P"),
    ],
)
def test_numbers_have_their_prefix(number, text):
    assert with_prefix(number) == text


def test_a_schedule_of_a_known_data_set_needs_no_data():
    settings = default()
    settings.data.name = "imagenet2012"
    assert dataset_size(settings) == (1_281_167, 1000)
    settings.data.train = "train[:99%]"
    assert dataset_size(settings) == (1_268_355, 1000)
    settings.data.name = "unheard_of"
    assert dataset_size(settings) == (None, None)


def test_a_plan_downloads_nothing_if_another_version_is_prepared(tmp_path):
    old = tmp_path / "oxford_iiit_pet" / "3.2.0"
    old.mkdir(parents=True)
    (old / "dataset_info.json").write_text("{}")
    (old / "features.json").write_text("{}")
    settings = default()
    settings.data.name, settings.data.dir = "oxford_iiit_pet", str(tmp_path)
    assert dataset_size(settings) == (3680, 37)
    assert [path.name for path in tmp_path.iterdir()] == ["oxford_iiit_pet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=local", "--config.batch_size=20"], "multiple of 8"),
        (["--topology=local", "--config.job=sweep"], "only the steps of 'train'"),
        (["--topology=local", "--config.data.name=unheard_of"], "give --images=N"),
        (["--topology=local", "--config.modle=1"], "modle"),
        (["--topology=local", "--imagse=1"], "imagse"),
        (["--topology=v5e:4x4"], 'pip install -e ".[tpu]"'),
        (["--topology=foo"], "write one like v5e:4x4, v4:2x2x4"),
        (["--topology=v5e"], 'pip install -e ".[tpu]"'),
        (["--topology=h100:8"], 'pip install -e ".[cuda]"'),
        (["--topology=h100"], "write h100:1 to h100:8, GPUs of one host"),
        (["--topology=a100:9"], "write a100:1 to a100:8, GPUs of one host"),
    ],
)
def test_mistakes_get_one_paragraph(monkeypatch, arguments, message):
    find = importlib.util.find_spec
    missing = ("libtpu", "jax_plugins")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda x: None if x.startswith(missing) else find(x)
    )
    monkeypatch.setattr(plan_command, "without_tpu", lambda: None)
    with pytest.raises(SystemExit) as error:
        main([f"--config={CONFIG}rendered_flowers", *TINY, *arguments])
    assert message in str(error.value)
    assert "Traceback" not in str(error.value)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install -e ".[tpu]"'
)


def command(*arguments):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "vit_jax.plan",
            f"--config={CONFIG}rendered_flowers",
            *TINY,
            *arguments,
        ],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "device", "count", "memory"),
    [("v5e:2x2", "TPU v5 lite", 4, 15.75), ("v3:2x2", "TPU v3", 8, 15.48)],  # a v3's two cores
)
def test_a_step_is_compiled_for_a_tpu_that_is_not_there(topology, device, count, memory):
    """The memory is what XLA names in its messages that a program doesn't fit."""
    done = command(f"--topology={topology}", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["device"], report["chips"], report["fits"]) == (device, count, True)
    assert report["memory_bytes"] == int(memory * 2**30)
    assert report["collectives"]["all-reduce"]["bytes"] > 4 * report["parameters"]
    times = report["step_seconds"]
    assert times["step"] == max(times[x] for x in ("compute", "memory", "interconnect")) > 0
    assert report["run_chip_hours"] == pytest.approx(
        count * report["total_steps"] * times["step"] / 3600
    )


@pytest.mark.slow
@needs_libtpu
def test_unknown_topologies_are_refused_with_examples():
    done = command("--topology=v5e:3x5")
    assert done.returncode == 1
    assert "v5e:4x4, v4:2x2x4" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(hardware._installed, hardware._GPU_PLUGINS)),
    reason='needs pip install -e ".[cuda]"',
)
@pytest.mark.parametrize("strategy", ["pmap", "sharded"])
def test_a_step_is_compiled_for_gpus_that_are_not_there(strategy):
    """Its matmuls are libraries', and 5 tokens are 6: the FLOPs are those compiled for here."""
    settings = f"--config.parallel={strategy}", "--config.dtype=bfloat16", "--config.model.width=32"
    report, here = (
        json.loads(command(f"--topology={where}", *settings, "--json").stdout)
        for where in ("h100:2", "local")
    )
    assert (report["device"], report["chips"]) == ("NVIDIA H100 80GB HBM3", 2)
    assert report["fits"] and report["memory_bytes"] == 0.75 * 79 * 2**30
    assert 1 < report["compiled_flops_per_step"] / here["compiled_flops_per_step"] < 1.25
    assert report["collectives"]["all-reduce"]["count"] > 0
    assert report["step_seconds"]["step"] > 0
