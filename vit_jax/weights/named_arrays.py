"""A file's arrays by our names, and what must be compared to tell whether a model has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.weights import layout
from vit_jax.weights.layout import Layout, Place, Shape
from vit_jax.weights.tensor_file import LazyArray, TensorFile, stored_array


class NamedArrays(NamedTuple):
    """A file's arrays by our names.

    Attributes:
      layout: the layout that the names belong to.
      arrays: by our names, see `folding`.
      places: the parameters in each array of the file, by our names.
      unknown: names in the file that the layout doesn't know.
      ignored: names in the file of what is no part of the encoder.
    """

    layout: Layout
    arrays: dict[str, LazyArray]
    places: dict[str, dict[str, Place]]
    unknown: list[str]
    ignored: list[str]


def named_arrays(file: TensorFile) -> NamedArrays:
    """Returns a file's arrays by our names.

    Raises:
      ValueError: none of the names is known, or two are of one parameter.
    """
    found = layout.recognise_layout(file.layouts, file.shapes)
    places = {theirs: found.places(theirs, shape) for theirs, shape in file.shapes.items()}
    arrays: dict[str, LazyArray] = {}
    sources: dict[str, str] = {}
    for theirs, these in places.items():
        for name in list(these) or [theirs]:  # an unknown array may have the name of one of ours
            layout.check_alone(file.path, theirs, sources.get(name))
            sources[name] = theirs
        arrays |= {name: stored_array(file, place) for name, place in these.items()}
    if not arrays:
        titles = " or ".join(dict.fromkeys(x.title for x in file.layouts))
        raise ValueError(
            f"{file.path} holds no ViT or BiT ResNet as {titles} files name them: its "
            f"{len(file.shapes)} arrays are called {', '.join(list(file.shapes)[:4])}…"
        )
    others = [theirs for theirs, these in places.items() if not these]
    ignored = [theirs for theirs in others if found.ignores(theirs)]
    unknown = [theirs for theirs in others if not found.ignores(theirs)]
    return NamedArrays(found, arrays, places, unknown, ignored)


def comparable_shapes(
    file: TensorFile,
    names: NamedArrays,
    folded: Mapping[str, LazyArray],
    model_shapes: Mapping[str, Shape],
) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Returns the shapes of a file's arrays, and those that it should have for a model, by name.

    Names are those of the file, but for arrays that were folded, which have ours.

    Raises:
      ValueError: the layout has no place for a parameter of the model.
    """
    changed = {name for name, x in folded.items() if x is not names.arrays.get(name)}
    untouched = {name: shape for name, shape in model_shapes.items() if name not in changed}
    slots = layout.slots([names.layout], untouched)
    expected = {
        theirs: slot.shape(dict(model_shapes))
        for theirs, slot in slots.items()
        if all(name in model_shapes for name in slot.ours)  # not if it has a gate, the model none
    }
    expected |= {name: _flat(name, model_shapes[name]) for name in changed if name in model_shapes}
    found = {
        theirs: file.shapes[theirs]
        for theirs, places in names.places.items()
        if theirs in names.unknown or any(n in folded and n not in changed for n in places)
    }
    found |= {name: _flat(name, folded[name].shape) for name in changed}
    for name, shape in found.items():  # some files have a GroupNorm's (c,) as (1, 1, 1, c)
        if len(expected.get(name, ())) == 1 and set(shape[:-1]) == {1}:
            found[name] = shape[-1:]
    return found, expected


def _flat(name: str, shape: Shape) -> Shape:
    """Returns the shape of a parameter whose attention heads are not separated."""
    layer, kind = name.split("/")[-2:] if "/" in name else ("", name)
    heads = {("kernel", 3): 1, ("bias", 2): 0} if layer != "out" else {("kernel", 3): 0}
    at = heads.get((kind, len(shape))) if layer in ("query", "key", "value", "out") else None
    return shape if at is None else (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
