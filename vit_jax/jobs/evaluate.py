"""job="evaluate": how good a checkpoint is on a split, in numbers, pictures and one page."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.checkpoints.workdir import open_workdir
from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.config.keys import image_shape, model_attributes
from vit_jax.data import sources, splits
from vit_jax.data.checks import require_loss_for_labels
from vit_jax.data.dataset import Dataset, is_multi_label
from vit_jax.data.inputs import evaluation_batches
from vit_jax.data.skipped import SkippedImages
from vit_jax.data.subset import without_empty_classes
from vit_jax.data.transforms import view_of
from vit_jax.evaluation.answers import Answers, answer_extractor, answer_split
from vit_jax.evaluation.average_precision import Ranking
from vit_jax.evaluation.fewshot import feature_extractor
from vit_jax.evaluation.intervals import in_percent, with_interval
from vit_jax.evaluation.pairing import BY_NUMBER, Pairing, pair_classes, with_classes
from vit_jax.evaluation.split_metrics import (
    MEAN_AVERAGE_PRECISION,
    POLYAK,
    TEST,
    prefixed,
    rank_split,
)
from vit_jax.jobs.calibration import check_can_calibrate, write_calibrated
from vit_jax.jobs.evaluation_report import write_report
from vit_jax.jobs.runs import write_tables
from vit_jax.jobs.same_data import splits_of_run, warn_of_other_images
from vit_jax.jobs.validation import validate
from vit_jax.models.attributes import of_kind
from vit_jax.training.classification import classification
from vit_jax.training.fit_memory import fit_evaluation
from vit_jax.training.parallel import make_program
from vit_jax.weights.api import adapt, load

logger = logging.getLogger(__name__)

_SHARES = {  # of images; as tables say it
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "precision_at_1": "precision at 1",
}
_OTHER_SHARES = {
    "balanced_accuracy": "balanced accuracy",
    "expected_calibration_error": "calibration error",
}
_PARAMETERS = {TEST: "trained", POLYAK: "Polyak average"}  # as tables say it


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Evaluates a checkpoint on a split; writes WORKDIR/index.html, and tables and pictures.

    The model and its image size are the checkpoint's. The data (`data.name`, `data.test`) and
    `eval_batch_size` are the configuration's. If `data.test` is None, `choose_split` chooses the
    split. The log says which it is, and how many images it has. It also says how the data's classes
    were paired with the checkpoint's, see `pair_classes`. If the data have a part of the classes,
    only the logits of these are counted.

    Args:
      config: `init_from` names the checkpoint. If it is None, it is the newest in `workdir`.
      workdir: where the results go, see `evaluation_report.write_report`; and evaluation.csv, with
        evaluation.md, the same as Markdown.

    Returns:
      `step`; `data`; `test_split`; `test_images`, the number of images that were classified;
      `classes`, the number of the data's classes; `classes_paired_by`, such as "WordNet id";
      `test_accuracy`, `test_loss`… and `polyak_test_accuracy`…, as `train`; for every accuracy
      NAME, NAME_low and NAME_high: the ends of its 95 % interval, see `wilson_interval`;
      `test_balanced_accuracy`, the mean recall of the classes; `test_expected_calibration_error`,
      see `calibration.Reliability`; `images_per_second`; `skipped_images`, if there were any;
      `checkpoint`, its path; with `calibrate`, what `write_calibrated` returns; and paths of files:
      `table` is evaluation.csv, for the others see `write_report`. If images have several labels,
      accuracies are `test_precision_at_1` and `test_mean_average_precision`, and what needs one
      label an image is left out.

    Raises:
      ValueError: a class of the data can't be paired with one of the checkpoint's; or images have
        several labels, and the checkpoint was trained for one each; or as `train`.
      FileNotFoundError: there is no data or no checkpoint, or no file `data.class_map`.

    Example:
      >>> config = vit_jax.default_config()
      >>> config.job = "evaluate"
      >>> config.init_from, config.data.name = "checkpoints/quickstart", "rendered_flowers"
      >>> config.eval_batch_size = 200
      >>> summary = vit_jax.evaluate(config, folder)
      >>> summary["test_split"], summary["test_images"]
      ('test', 600)
      >>> 0.9 < summary["test_accuracy_low"] < summary["test_accuracy"] < 0.96
      True
    """
    validate(config)
    with open_workdir(workdir) as folder:
        return _evaluate(config, folder)


def _evaluate(config: ConfigDict, folder: epath.Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(config, folder)
    if not checkpoint.num_classes:
        raise ValueError(
            f"{checkpoint.path} has no head to classify with: fine-tune from it, or take "
            f"--config.job=fewshot, which evaluates its features."
        )
    dataset = sources.open_dataset(config.data.name, config.data.dir)
    split, reason = choose_split(config, checkpoint, dataset)
    _, source = sources.open_source(dataset, "test", split)
    logger.info(
        "%s: evaluated on %s, %s (%d images). %s",
        *(printable(checkpoint.path), printable(config.data.name), split, len(source), reason),
    )
    require_loss_for_labels(source, checkpoint.loss, config.data.name, checkpoint.path)
    warn_of_other_images(checkpoint, config.data.name, dataset, split, source)
    class_names, source = without_empty_classes(dataset, source)
    pairing = pair_classes(checkpoint, class_names, config.data.name, config.data.class_map)
    _log_pairing(pairing, checkpoint, class_names, config.data.name)
    opened, checkpoint = checkpoint, with_classes(checkpoint, pairing, class_names)
    options, skipped = checkpoint_view(config, checkpoint), SkippedImages()
    model, multi_label = checkpoint.model(dtype=config.dtype), is_multi_label(source)
    objective = classification(model, loss=checkpoint.loss, multi_label=multi_label)
    check_can_calibrate(config, multi_label)
    extract: Callable[..., Any]
    if multi_label:
        extract = feature_extractor(model)
    else:
        extract = answer_extractor(model, checkpoint.loss, keep_logits=config.calibrate)
    config = fit_evaluation(config, extract, checkpoint.params, options.image_size)
    make_batches = evaluation_batches(config, options, skipped)
    batches = make_batches(source, num_classes=len(class_names))
    program = make_program(config, evaluate=objective.evaluate, extract_features=extract)

    def measure(params: Any) -> tuple[dict[str, float], Answers | Ranking]:
        placed = program.place(params)
        if multi_label:
            return rank_split(objective, program, placed, batches)
        answers = answer_split(program, placed, batches)
        return answers.summarize(len(class_names)), answers

    start = time.monotonic()
    metrics, found = measure(checkpoint.params)
    seconds, measured = time.monotonic() - start, {TEST: metrics}
    if checkpoint.average is not None:
        measured[POLYAK], _ = measure(checkpoint.average)
    images = found.images
    columns = {prefix: _with_intervals(metrics, images) for prefix, metrics in measured.items()}

    table = folder / "evaluation.csv"
    where = {"data": config.data.name, "split": split, "images": images}
    where |= {"classes": len(class_names), "classes_paired_by": pairing.by}
    shown = [
        {"parameters": _PARAMETERS[p], **where, **_shown(measured[p], images)} for p in measured
    ]
    rows = [{"parameters": _PARAMETERS[p], **where, **columns[p]} for p in columns]
    calibrated: dict[str, Any] = {}
    if config.calibrate and isinstance(found, Answers):
        calibrated = write_calibrated(opened, found, folder / "calibrated")
        _add_to_first(rows, {x: y for x, y in calibrated.items() if isinstance(y, float)})
        _add_to_first(shown, _shown_calibrated(calibrated))
    write_tables(table, rows, shown)
    files = write_report(folder, checkpoint, source, found, shown)
    return {
        "step": checkpoint.step,
        "data": config.data.name,
        "test_split": split,
        "test_images": images,
        "classes": len(class_names),
        "classes_paired_by": pairing.by,
        **{name: x for p, found in columns.items() for name, x in prefixed(p, found).items()},
        **({"skipped_images": len(skipped)} if len(skipped) else {}),
        "images_per_second": round(images / seconds, 1),
        "checkpoint": checkpoint.path,
        "table": str(table),
        **files,
        **calibrated,
    }


def choose_split(config: ConfigDict, checkpoint: Checkpoint, dataset: Dataset) -> tuple[str, str]:
    """Returns the split to evaluate a checkpoint on, and a sentence that says why it is this one.

    It is the first of these that exists: `data.test`; if the checkpoint was trained on this data
    set, the test split of its run; the data set's own test or validation split; all of the data.

    Args:
      config: names the data set.
      checkpoint: its configuration says what it was trained on, if it comes from a run of ours.
      dataset: the data set that is opened.
    """
    if config.data.test is not None:
        return config.data.test, "data.test names this split."
    if of_run := splits_of_run(checkpoint, config.data.name, dataset):
        return of_run[1], "It is the test split of the checkpoint's training."
    own, held_out = splits.own_test_split(dataset.splits), splits.default_splits(dataset.splits)[1]
    if own is not None:
        return own, "It is the data set's own split for this."
    known = checkpoint.step > 0
    training = checkpoint.config.data.name if known else "data that its file doesn't name"
    return "+".join(dataset.splits), (
        f"These are all its images, because the checkpoint was trained on {training}. If that "
        f"included some of these images, set data.test to a split without them, such as {held_out}."
    )


def _with_intervals(metrics: dict[str, float], images: int) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name, value in metrics.items():
        columns |= with_interval(name, value, images) if name in _SHARES else {name: value}
    return columns


def _shown(metrics: dict[str, float], images: int) -> dict[str, str]:
    """Returns metrics as the Markdown table shows them."""
    shown = {"loss": f"{metrics['loss']:.3f}"} | {
        f"{title}, % (95 % interval)": in_percent(metrics[name], images)
        for name, title in _SHARES.items()
        if name in metrics
    }
    if (mean := metrics.get(MEAN_AVERAGE_PRECISION)) is not None:
        shown["mean average precision, %"] = f"{100 * mean:.1f}"
    for name, title in _OTHER_SHARES.items():
        if name in metrics:
            shown[f"{title}, %"] = f"{100 * metrics[name]:.1f}"
    return shown


def _shown_calibrated(calibrated: dict[str, Any]) -> dict[str, str]:
    """Returns what `write_calibrated` returns as the Markdown table shows it."""
    error = calibrated["calibrated_expected_calibration_error"]
    return {
        "temperature": f"{calibrated['temperature']:.3f}",
        "loss with it": f"{calibrated['calibrated_loss']:.3f}",
        "calibration error with it, %": f"{100 * error:.1f}",
    }


def _add_to_first(rows: list[dict[str, Any]], more: dict[str, Any]) -> None:
    """Adds columns to a table that only its first row fills."""
    for number, row in enumerate(rows):
        row.update(dict.fromkeys(more, "") if number else more)


def open_checkpoint(config: ConfigDict, folder: epath.Path) -> Checkpoint:
    """Returns the checkpoint that a job tests.

    Args:
      config: `init_from` names it. If it is of other code, `config.model` has attributes that its
        file doesn't record, and may ask for another size of patches; not if it has a width, since
        it is then a model of its own.
      folder: has it if `init_from` is None.

    Raises:
      ValueError, FileNotFoundError: as `weights.load`.
    """
    stated = of_kind(model_attributes(config), "size", "weights", "mathematics")
    if "width" in stated:
        stated = {}
    pool, patch_size = stated.pop("pool", None), stated.pop("patch_size", None)
    checkpoint = load(config.init_from or folder, **stated)
    is_foreign = checkpoint.step == 0
    return adapt(checkpoint, pool=pool, patch_size=patch_size) if is_foreign else checkpoint


def checkpoint_view(config: ConfigDict, checkpoint: Checkpoint) -> ConfigDict:
    """Returns `config.data` with a checkpoint's image size, if it is known, and its view.

    Keys of the view that the configuration sets are its own. The log tells what is not.
    """
    options = config.data.copy_and_resolve_references()
    view = view_of(options, checkpoint.config.data)
    if any(options[key] is None for key in view._fields):
        logger.info(
            "Images are seen with %s. What the configuration leaves open is as %s says.",
            *(view, printable(checkpoint.path)),
        )
    options.update(view._asdict())
    if checkpoint.image_shape is not None:
        if image_shape(options.image_size) != checkpoint.image_shape:
            logger.info(
                "Images have the %d x %d pixels (height x width) that %s says, and "
                "data.image_size=%s is not read. `python -m vit_jax.convert SOURCE OUT "
                "--image_size=…` makes a checkpoint for another size.",
                *(*checkpoint.image_shape, printable(checkpoint.path), options.image_size),
            )
        with options.ignore_type():  # one side or two
            options.image_size, options.eval_image_size = checkpoint.image_shape, None
    return options


def _log_pairing(
    pairing: Pairing, checkpoint: Checkpoint, class_names: tuple[str, ...], data: str
) -> None:
    """Logs how the classes of the data were paired with those of the checkpoint."""
    where, data = printable(checkpoint.path), printable(data)
    if pairing.by == BY_NUMBER and not checkpoint.class_names:
        logger.warning(
            "%s has no names of classes: its logits are paired with the classes of %s by number, "
            "in the order %s. Nothing says that the order is the same.",
            *(where, data, first_few(class_names, 12)),
        )
        return
    part = ""
    if len(class_names) < checkpoint.num_classes:
        part = f" Only the logits of these {len(class_names)} are counted."
    logger.info(
        "The %d classes of %s are paired with the %d of %s by %s.%s",
        *(len(class_names), data, checkpoint.num_classes, where, pairing.by, part),
    )
