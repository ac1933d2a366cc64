"""What `job="evaluate"` writes beside its table: files about classes, confidence and mistakes."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.files import write_csv, write_file
from vit_jax.common.web_page import Picture, Section, build_page
from vit_jax.data.dataset import Source
from vit_jax.data.pipeline import decode_example
from vit_jax.evaluation import pictures
from vit_jax.evaluation.answers import Answers
from vit_jax.evaluation.average_precision import Ranking
from vit_jax.evaluation.calibration import Reliability
from vit_jax.evaluation.class_metrics import ClassMetrics

_DRAWN = 1000  # most classes of which a confusion matrix is drawn
_MISTAKES, _SHOWN = 100, 12  # on their own page; and of these, on index.html
_CONFUSIONS = 10  # the most frequent ones, on index.html
_SIDE = 256  # pixels of a mistake's longer side

_Rows = list[list[Any]]


def write_report(
    folder: epath.Path,
    checkpoint: Checkpoint,
    source: Source,
    found: Answers | Ranking,
    shown: Sequence[dict[str, str]],
) -> dict[str, str]:
    """Writes tables, pictures and pages that say how good a checkpoint is. The first process does.

    - class_metrics.csv: images, precision, recall and F1 of each class. Undefined ones are empty.
    - confusion_matrix.csv and, up to 1,000 classes, .png: a row for each true class and a column
      for each predicted class, counting images.
    - reliability.csv and .png: accuracy by confidence, see `calibration.Reliability`.
    - mistakes.html: the 100 wrong predictions with the largest confidence, and their images.
    - index.html: all of it on one page, which holds its pictures.

    Where images have several labels, an image is predicted to be of every class whose probability
    is above 0.5. class_metrics.csv has the average precision, too, and only index.html is beside
    it.

    Args:
      folder: where the files go, on this machine or in a bucket.
      checkpoint: its classes are those of the data.
      source: the images.
      found: what the checkpoint answers.
      shown: the rows of the table of the evaluation.

    Returns:
      The paths of the tables and pages, by their names without suffix; index.html by "page".
    """
    names = checkpoint.class_names
    tables: dict[str, _Rows] = {}
    drawn: dict[str, bytes] = {}
    numbers = [[x.replace("_", " "), *(str(row[x]) for row in shown)] for x in shown[0]]
    sections = [Section("Numbers", [], table=numbers)]
    if isinstance(found, Ranking):
        ranked, classes = found.by_class(jax.tree.map(np.asarray, checkpoint.params["head"]))
        rows = tables["class_metrics"] = _class_rows(names, classes, average_precision=ranked)
        sections.append(Section("Classes", [_ABOUT_CLASSES, _ABOUT_LABELS], table=_percent(rows)))
        pages = {"page": "index.html"}
    else:
        confusions = found.confusions(len(names))
        rows = tables["class_metrics"] = _class_rows(names, found.classes(len(names)))
        sections.append(Section("Classes", [_ABOUT_CLASSES], table=_percent(rows)))
        table = zip(names, confusions.tolist(), strict=True)
        tables["confusion_matrix"] = [["true \\ predicted", *names], *([x, *y] for x, y in table)]
        tables["reliability"] = _reliability_rows(found.reliability)
        pages = {"mistakes": "mistakes.html", "page": "index.html"}
    if jax.process_index() == 0:
        for name, rows in tables.items():
            write_csv(folder / f"{name}.csv", rows)
        title, text = f"How good is {checkpoint.config.model.variant}?", _describe(checkpoint)
        if isinstance(found, Answers):
            drawn["reliability.png"] = pictures.draw_reliability(found.reliability)
            if len(names) <= _DRAWN:
                drawn["confusion_matrix.png"] = pictures.draw_confusions(confusions, names)
            for name, content in drawn.items():
                write_file(folder / name, content)
            mistakes = _mistakes(found, names, source, drawn)
            page = build_page(title, text, [mistakes], drawn.__getitem__)
            write_file(folder / pages["mistakes"], page)
            sections.append(_confusions(confusions, names, drawn))
            sections.append(_calibration(found.reliability))
            sections.append(_first(mistakes, pages["mistakes"]))
        page = build_page(title, text, sections, drawn.__getitem__)
        write_file(folder / pages["page"], page)
    paths = {name: f"{name}.csv" for name in tables} | pages
    return {name: str(folder / file) for name, file in paths.items()}


# ----------------------------------------------------------------------------------------- tables


def _class_rows(names: Sequence[str], classes: ClassMetrics, **more: np.ndarray) -> _Rows:
    """Returns the rows of class_metrics.csv; numbers that are undefined are empty."""
    counts = {"images": classes.support, "predicted": classes.predicted}
    ratios = {"precision": classes.precision, "recall": classes.recall, "f1": classes.f1, **more}
    columns = [counts[x].tolist() for x in counts]
    columns += [[round(y, 4) if y == y else "" for y in x.tolist()] for x in ratios.values()]
    header = ["class", *counts, *ratios]
    return [header, *([x, *row] for x, row in zip(names, zip(*columns, strict=True), strict=True))]


def _reliability_rows(found: Reliability) -> _Rows:
    edges = np.linspace(0, 1, len(found.images) + 1)
    rows: _Rows = [["above", "up_to", "images", "confidence", "accuracy"]]
    for low, high, images, *means in zip(edges, edges[1:], *found, strict=False):
        ends = [round(float(x), 4) for x in (low, high)]
        rows.append([*ends, int(images), *(round(float(x), 4) if images else "" for x in means)])
    return rows


def _percent(rows: _Rows) -> list[list[str]]:
    """Returns rows as a page shows them: shares in per cent, undefined ones as a dash."""

    def shown(x: Any) -> str:
        return f"{100 * x:.1f} %" if isinstance(x, float) else str(x)

    titles = [name.replace("_", " ").replace("f1", "F1") for name in rows[0]]
    return [titles, *([str(name), *(shown(x) or "–" for x in row)] for name, *row in rows[1:])]


# --------------------------------------------------------------------------------------- the page

_ABOUT_CLASSES = (
    "Precision: the share of the images predicted to be of a class that are of it. Recall: the "
    "share of the images of a class that are predicted to be. F1 is their harmonic mean. What has "
    "no images to be a share of is left open."
)
_ABOUT_LABELS = (
    "An image may have several labels. It is predicted to be of every class whose probability is "
    "above 0.5. The average precision needs no such threshold."
)


def _describe(checkpoint: Checkpoint) -> str:
    step = f", step {checkpoint.step}" if checkpoint.step else ""
    return f"{checkpoint.path}{step}: {len(checkpoint.class_names)} classes."


def _confusions(confusions: np.ndarray, names: Sequence[str], drawn: dict[str, bytes]) -> Section:
    wrong = confusions - np.diag(np.diag(confusions))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    most = [
        (i, j) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]
    ]
    rows = [[names[i], names[j], str(wrong[i, j])] for i, j in most]
    file = "confusion_matrix.png"
    shown = [Picture({file: "counts"}, "Confusion matrix", "")] if file in drawn else []
    text = "The most frequent confusions. All are in confusion_matrix.csv." if rows else "None."
    table = [["true class", "predicted class", "images"], *rows] if rows else []
    return Section("Confusions", [text], shown, table)


def _calibration(found: Reliability) -> Section:
    text = (
        f"The expected calibration error is {100 * found.expected_calibration_error:.1f} %: by so "
        f"much the accuracy is off the confidence, on average over the images. Where the bars are "
        f"below the dashed line, the model is more often wrong than it says. The numbers are in "
        f"reliability.csv."
    )
    picture = Picture({"reliability.png": "accuracy by confidence"}, "Reliability diagram", "")
    return Section("Confidence", [text], [picture])


def _mistakes(
    found: Answers, names: Sequence[str], source: Source, drawn: dict[str, bytes]
) -> Section:
    """Returns the section of mistakes.html; adds its images to `drawn`."""
    shown = []
    for place in found.mistakes(_MISTAKES):
        image, example = decode_example(source, int(found.number[place]))
        file = f"mistake-{found.number[place]}.jpg"
        drawn[file] = _small_jpeg(image)
        caption = (
            f"Predicted: {names[found.predicted[place]]}, {100 * found.confidence[place]:.1f} %. "
            f"True class: {names[found.label[place]]}. {example.id}"
        )
        shown.append(Picture({file: "image"}, os.path.basename(example.id), caption))
    count = int((~found.is_right).sum())
    text = f"{count:,} of {found.images:,} predictions are wrong."
    if shown:
        text += f" These {len(shown)} have the largest confidence, the first the largest of all."
    return Section("The most confident mistakes", [text], shown, narrow=True)


def _first(mistakes: Section, file: str) -> Section:
    """Returns the section of index.html: the first mistakes, and a link to the page of more."""
    rest = len(mistakes.pictures) > _SHOWN
    link = (file, f"{len(mistakes.pictures)} of them") if rest else None
    text = mistakes.paragraphs[0].partition(".")[0] + "."
    return mistakes._replace(paragraphs=[text], pictures=mistakes.pictures[:_SHOWN], link=link)


def _small_jpeg(image: np.ndarray) -> bytes:
    """Returns an image, uint8 RGB (h, w, 3), as a JPEG of at most 256 pixels a side."""
    small, target = Image.fromarray(image), io.BytesIO()
    small.thumbnail((_SIDE, _SIDE))
    small.save(target, "JPEG", quality=85)
    return target.getvalue()
