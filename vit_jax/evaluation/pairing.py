"""Which logit of a model is for which class of a data set."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.messages import first_few
from vit_jax.common.names import class_name, printable
from vit_jax.evaluation.class_map import find_class_map, read_class_map
from vit_jax.weights.class_names import imagenet_classes, with_class_names

BY_NUMBER = "number"


class Pairing(NamedTuple):
    """The logits of a data set's classes.

    Attributes:
      logits: the number of the logit of each class of the data, in the order of these classes.
      by: what the pairs were found by, such as "name" or "name and WordNet id".
    """

    logits: tuple[int, ...]
    by: str


# The forms of a class's name, by what the pairs are then said to be found by. The first form that a
# class of the data shares with one of the model pairs the two.
_FORMS = ("name", "WordNet id", "whole name", "lemma")
_Forms = Mapping[str, frozenset[str]]


def pair_classes(
    checkpoint: Checkpoint, class_names: Sequence[str], data: str, class_map: str | None = None
) -> Pairing:
    """Finds the logit of each class of a data set.

    A `class_map.csv` in the data's folder, or `class_map`, gives all pairs. Otherwise the classes
    are paired by the first of these that two of them share: the name; the WordNet id, such as
    n01440764; the whole name; a lemma, such as "tench" of "tench, Tinca tinca". Case, "_" and " "
    don't count in the last two. 1,000 logits without names are taken to be those of ImageNet-1k,
    see `class_names.with_class_names`.

    They are paired by number if both have as many classes, and the model's have no names, or are
    ImageNet-1k's where the data's are called 0, 1, … 999, as the folders of ImageNet-V2.

    Args:
      checkpoint: the model, with a head.
      class_names: the names of the data's classes, by label. They may be a part of the model's.
      data: the `data.name` of the data set.
      class_map: path of a CSV file with the columns class, a name of the data's, and model_class, a
        name of the model's or the number of a logit. None takes that of the data's folder, if any.

    Raises:
      ValueError: a class of the data has no logit, or may have several, or shares its logit with
        another one; the classes are named. Or the file can't be used.
      FileNotFoundError: there is no file `class_map`.
    """
    known = with_class_names(checkpoint).class_names
    if path := find_class_map(data, class_map):
        logits = read_class_map(path, class_names, known, checkpoint.num_classes)
        _check_different(logits, class_names, known, checkpoint.path)
        return Pairing(logits, path.name)
    if _are_numbered(class_names, known, checkpoint.num_classes):
        return Pairing(tuple(range(len(class_names))), BY_NUMBER)
    if not known:
        raise ValueError(
            f"{printable(checkpoint.path)} has {checkpoint.num_classes} classes, but "
            f"{printable(data)} has {_listed(class_names)}: choose data with the checkpoint's "
            f"classes. It has no names of classes, so a class_map.csv can give the number of the "
            f"logit of each class, see data.class_map."
        )
    if [*map(class_name, known)] == [*map(class_name, class_names)]:
        return Pairing(tuple(range(len(known))), "name")
    index = _index_of_model(known)
    found = {name: _find_logits(_forms_of_data(name), index) for name in class_names}
    if missing := [name for name, (_, logits) in found.items() if not logits]:
        raise ValueError(
            f"{printable(checkpoint.path)} has {_listed(known)}, but {printable(data)} has "
            f"{_listed(class_names)}, of which these are none of the checkpoint's: "
            f"{first_few(missing, 8, separator='; ')}. So choose data with the checkpoint's "
            f"classes. If the data have other names for them, a class_map.csv can pair them, see "
            f"data.class_map."
        )
    if doubtful := [
        f"{name} may be {' or '.join(f'{known[i]!r} (logit {i})' for i in logits)}"
        for name, (_, logits) in found.items()
        if len(logits) > 1
    ]:
        raise ValueError(
            f"It isn't clear which classes of {printable(checkpoint.path)} some of "
            f"{printable(data)} are: {first_few(doubtful, separator='; ')}. A class_map.csv can "
            f"pair them, see data.class_map."
        )
    used = {form for form, _ in found.values()}
    by = " and ".join(form for form in _FORMS if form in used)
    logits = tuple(logits[0] for _, logits in found.values())
    _check_different(logits, class_names, known, checkpoint.path)
    return Pairing(logits, by)


def with_classes(
    checkpoint: Checkpoint, pairing: Pairing, class_names: Sequence[str]
) -> Checkpoint:
    """Returns a checkpoint whose logits are those of a data set's classes, in their order.

    The softmax of these logits is over the data's classes alone.

    Args:
      checkpoint: with a head.
      pairing: what `pair_classes` returns.
      class_names: the names of the data's classes, by label.
    """
    chosen = list(pairing.logits)

    def choose(params):
        if params is None or chosen == list(range(checkpoint.num_classes)):
            return params
        return params | {"head": jax.tree.map(lambda x: np.asarray(x)[..., chosen], params["head"])}

    return checkpoint._replace(
        params=choose(checkpoint.params),
        average=choose(checkpoint.average),
        class_names=tuple(class_names),
    )


# ------------------------------------------------------------------------------------------ names


def _simplified(name: str) -> str:
    """Returns a name without case, spaces, underscores and commas, in one Unicode form."""
    return re.sub(r"[\s_,]+", "", unicodedata.normalize("NFKC", name).casefold())


def _wordnet_id(name: str) -> str | None:
    """Returns the WordNet id that a name is or begins with, as "n01440764_tench" does."""
    found = re.match(r"n[0-9]{8}(?![0-9A-Za-z])", name)
    return found[0] if found else None


def _lemmas(name: str) -> frozenset[str]:
    return frozenset(filter(None, map(_simplified, name.split(","))))


def _forms_of_data(name: str) -> _Forms:
    whole = frozenset([_simplified(name)])
    wordnet_id = _wordnet_id(name)
    return {
        "name": frozenset([class_name(name)]),
        "WordNet id": frozenset([wordnet_id] if wordnet_id else []),
        "whole name": whole,
        "lemma": whole | _lemmas(name),
    }


def _index_of_model(names: Sequence[str]) -> Mapping[tuple[str, str], list[int]]:
    """Returns {(kind, form): logits} of a model's classes."""
    index: dict[tuple[str, str], list[int]] = {}
    for logit, forms in enumerate(_forms_of_model(names)):
        for kind, values in forms.items():
            for value in values:
                index.setdefault((kind, value), []).append(logit)
    return index


def _forms_of_model(names: Sequence[str]) -> Iterator[_Forms]:
    """Yields the forms of a model's classes; those of ImageNet-1k have their WordNet ids."""
    imagenet = imagenet_classes()
    ids_of_whole, ids_of_lemma = defaultdict(set), defaultdict(set)
    for wordnet_id, words in imagenet.items():
        ids_of_whole[_simplified(words)].add(wordnet_id)
        for lemma in _lemmas(words):
            ids_of_lemma[lemma].add(wordnet_id)
    places = [*imagenet] if len(names) == len(imagenet) else [""] * len(names)
    for name, here in zip(names, places, strict=True):
        own, form = _wordnet_id(name), _simplified(name)
        ids = {own} if own else ids_of_whole.get(form) or ids_of_lemma.get(form) or set()
        if here in ids:  # two classes are called "crane"
            ids = {here}
        words = imagenet.get(own, name) if own else name
        whole = frozenset([_simplified(words)])
        yield {
            "name": frozenset([class_name(name)]),
            "WordNet id": frozenset(ids if len(ids) == 1 else ()),
            "whole name": whole,
            "lemma": whole | _lemmas(words),
        }


def _find_logits(
    forms: _Forms, index: Mapping[tuple[str, str], list[int]]
) -> tuple[str, list[int]]:
    """Returns the first kind of form that a class shares with some of a model's, and their logits.

    Returns:
      ("", []) if it shares none.
    """
    for kind in _FORMS:
        if logits := {i for form in forms[kind] for i in index.get((kind, form), ())}:
            return kind, sorted(logits)
    return "", []


def _are_numbered(class_names: Sequence[str], known: Sequence[str], num_classes: int) -> bool:
    """Returns True if the logits of a data set's classes are 0, 1, 2, … by all that is known.

    Args:
      class_names: of the data.
      known: names of the model's classes; () if it has none.
      num_classes: number of its logits.
    """
    if len(class_names) != num_classes:
        return False
    if not known:
        return True
    are_numbers = all(name.isdecimal() and int(name) == i for i, name in enumerate(class_names))
    return are_numbers and _are_imagenet(known)  # as the folders of ImageNet-V2


def _are_imagenet(names: Sequence[str]) -> bool:
    """Returns True if a model's classes are those of ImageNet-1k, in their order."""
    imagenet = imagenet_classes()
    forms = [forms["WordNet id"] for forms in _forms_of_model(names)]
    return forms == [frozenset([wordnet_id]) for wordnet_id in imagenet]


def _check_different(
    logits: Sequence[int], class_names: Sequence[str], known: Sequence[str], path: str
) -> None:
    """Raises ValueError if two classes of a data set have the same logit."""
    for logit, count in Counter(logits).items():
        if count > 1:
            names = [name for name, x in zip(class_names, logits, strict=True) if x == logit]
            called = f", {known[logit]!r}" if known else ""
            raise ValueError(
                f"{first_few(names)} are different classes of the data, and all of them would be "
                f"logit {logit}{called} of {printable(path)}: put their images into one class, or "
                f"give each its own logit in a class_map.csv, see data.class_map."
            )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({first_few(names, 6, separator='; ')})"
