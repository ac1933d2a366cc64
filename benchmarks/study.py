"""The paper's main comparisons at the scale of a laptop, on photos of five kinds of flowers.

    make study                                   # or:
    python -m benchmarks.study ../shared/data/flower_photos --workdir=runs/study

(a) A ViT, a BiT ResNet and a hybrid of equal FLOPs from scratch, by compute (`configs/compare.py`).
(b) The same ViT on few labels: from scratch, and after pre-training on drawn flowers with labels or
    on all training photos without labels (masked patch prediction).
(c) Linear classifiers on the frozen features of (b)'s models, by number of shots.

Writes tables of the results to WORKDIR/study.md, and a plot to WORKDIR/compare/compare.png. A study
that was stopped continues when it is started again.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import platform
import runpy
import time

import jax
from ml_collections import ConfigDict
from tqdm.contrib.logging import logging_redirect_tqdm

from vit_jax.cli.environment import keep_freed_memory
from vit_jax.cli.errors import exit_at_signals
from vit_jax.common.host import available_cpus
from vit_jax.jobs import fewshot as fewshot_job
from vit_jax.jobs.compare import compare
from vit_jax.jobs.runs import train_once

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
LABELLED = "train[:10%]"
SCRATCH, DRAWN, MASKED = "from scratch", "drawn flowers", "masked patches"


def base(dataset: str) -> ConfigDict:
    """Returns the configuration of `compare.py` with its ViT, to train once.

    Its features are the mean of the patches, since masked patch prediction has no loss that trains
    the class token.
    """
    config = runpy.run_path(str(_CONFIGS / "compare.py"))["get_config"](dataset)
    config.model.update(config.compare.runs["ViT"].model)
    config.model.pool = "gap"
    config.job = "train"
    return config


def pretrained(dataset: str, workdir: pathlib.Path) -> dict[str, str]:
    """Trains (b)'s models until before they see labels of the photos; returns their workdirs."""
    masked = base(dataset)
    masked.objective = "masked_patches"
    masked.epochs = 40.0
    drawn = base("rendered_flowers")
    drawn.epochs, drawn.data.crop_area = 25.0, 0.35
    scratch = base(dataset)
    scratch.total_steps, scratch.optim.lr = 1, 1e-12  # keeps the initial parameters
    configs = {SCRATCH: scratch, DRAWN: drawn, MASKED: masked}
    folders = {name: workdir / name.replace(" ", "_") for name in configs}
    for name, config in configs.items():
        train_once(config, folders[name])
    return {name: str(folder) for name, folder in folders.items()}


def few_labels(dataset: str, workdirs: dict[str, str]) -> ConfigDict:
    """Returns the configuration that compares (b)'s models on `LABELLED`."""
    config = base(dataset)
    config.job = "compare"
    config.data.train = LABELLED
    config.total_steps, config.compare.epochs = 400, ()
    config.compare.runs = ConfigDict(
        {
            name: {} if name == SCRATCH else {"init_from": folder}
            for name, folder in workdirs.items()
        }
    )
    return config


def few_shot(dataset: str, workdirs: dict[str, str], workdir: pathlib.Path) -> list[str]:
    """Evaluates features; returns the lines of (c)'s Markdown table."""
    config = base(dataset)
    config.job, config.fewshot.seeds = "fewshot", 5
    shots = config.fewshot.shots
    lines = [
        f"| features | {' | '.join(f'{n} shots' for n in shots)} |",
        "|---" * (len(shots) + 1) + "|",
    ]
    for name, folder in workdirs.items():
        config.init_from = folder
        result = fewshot_job.few_shot(config, workdir / name.replace(" ", "_"))
        cells = [
            f"{100 * result[f'fewshot_{n}']:.1f} ± {100 * result[f'fewshot_{n}_std']:.1f}"
            for n in shots
        ]
        label = "none: random parameters" if name == SCRATCH else name
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def run(dataset: str, workdir: pathlib.Path) -> None:
    """Runs all parts and writes the tables."""
    workdir.mkdir(parents=True, exist_ok=True)
    clock = workdir / "seconds.json"
    seconds = json.loads(clock.read_text()) if clock.exists() else {}
    tables = {}
    for part in "abc":
        start = time.monotonic()
        if part == "a":
            config = runpy.run_path(str(_CONFIGS / "compare.py"))["get_config"](dataset)
            compare(config, workdir / "compare")
            tables[part] = (workdir / "compare" / "compare.md").read_text()
        elif part == "b":
            folders = pretrained(dataset, workdir / "pretrained")
            compare(few_labels(dataset, folders), workdir / "few_labels")
            tables[part] = (workdir / "few_labels" / "compare.md").read_text()
        else:
            tables[part] = "\n".join(few_shot(dataset, folders, workdir / "few_shot")) + "\n"
        seconds[part] = seconds.get(part, 0) + time.monotonic() - start
        clock.write_text(json.dumps(seconds))
    titles = {
        "a": "ViT, ResNet and hybrid of equal FLOPs, from scratch",
        "b": f"The same ViT on few labels, {LABELLED}",
        "c": "Few-shot linear evaluation, test accuracy in per cent over 5 draws",
    }
    machine = f"{len(available_cpus())} x {platform.processor() or platform.machine()}, "
    machine += f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    text = f"Data: {dataset}. Machine: {machine}.\n"
    for part, title in titles.items():
        text += f"\n## ({part}) {title}: {seconds[part] / 60:.1f} minutes\n\n{tables[part]}"
    (workdir / "study.md").write_text(text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a folder of images, or a tfds name such as tf_flowers")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/study"))
    arguments = parser.parse_args()
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("vit_jax").setLevel(logging.INFO)
    # The cache keeps programs from being compiled again for every seed.
    jax.config.update("jax_compilation_cache_dir", str(arguments.workdir / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    stopped = f"Stopped; the same command goes on from what {arguments.workdir} holds."
    with exit_at_signals(stopped), logging_redirect_tqdm():
        run(arguments.dataset, arguments.workdir)
