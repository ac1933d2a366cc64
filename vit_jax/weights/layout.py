"""How a file's arrays correspond to our parameters: rules of names, and changes of axes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from vit_jax.common.messages import first_few

Shape = tuple[int, ...]

_OUR_NAMES = re.compile(
    r"(cls|(conv_stem|embedding|pre_logits|projection|head|(patch|fc)_norm|MAPHead_0|Transformer"
    r"|(conv|gn)_root|gn_pre_head|block\d+/unit\d+)/)"
)
_PRE_LINEN_NAMES = re.compile(r"MultiHeadDotProductAttention_1|LayerNorm_2|MlpBlock_3")


class Packing(NamedTuple):
    """How one of our arrays is stored in a file.

    Attributes:
      pack: turns our array into the file's.
      unpack: turns the file's array into ours, up to a reshape.
    """

    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], np.ndarray]


SAME = Packing(lambda x: x, lambda y: y)


class Rule(NamedTuple):
    """One correspondence, for all layers at once.

    Names are templates: "{i}" stands for any number, "{i-1}" for that number minus one, "{i:02d}"
    for the number with two digits.

    Attributes:
      ours: templates of our names. If there are several, the file has these parameters in one
        array, one after another along axis 0.
      theirs: template of the name in the file.
      packing: how each of our arrays is stored.
    """

    ours: tuple[str, ...]
    theirs: str
    packing: Packing = SAME


class Slot(NamedTuple):
    """One array of a file, and the parameters of ours that it contains.

    Attributes:
      ours: the names of the parameters, in their order along axis 0.
      packing: how each of them is stored.
    """

    ours: tuple[str, ...]
    packing: Packing

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Returns the shape of the file's array, given the shapes of our parameters by name."""
        parts = [self._packed_shape(shapes[name]) for name in self.ours]
        return (sum(part[0] for part in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]

    def join(self, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the file's array, C-contiguous, given our parameters in the order of `ours`."""
        packed = [self.packing.pack(x) for x in arrays]
        return np.ascontiguousarray(packed[0] if len(packed) == 1 else np.concatenate(packed))

    def _packed_shape(self, shape: Shape) -> Shape:
        return self.packing.pack(_array_of(shape)).shape


class Place(NamedTuple):
    """Where a file has a parameter of ours.

    Attributes:
      theirs: the name of the array in the file.
      shape: the parameter's shape, with our order of axes; attention heads may not be separated.
      packing: how it is stored.
      part: which of the equal parts of the array along axis 0.
      parts: number of these parts.
    """

    theirs: str
    shape: Shape
    packing: Packing
    part: int
    parts: int

    def unpack(self, array: np.ndarray) -> np.ndarray:
        """Returns the parameter, given the file's array."""
        length = len(array) // self.parts if self.parts > 1 else 0
        part = array[self.part * length : (self.part + 1) * length] if length else array
        return self.packing.unpack(part)


class NoPlaceError(ValueError):
    """A format can't store some parameters.

    Attributes:
      names: those parameters.
    """

    def __init__(self, title: str, names: list[str]):
        super().__init__(f"The {title} format has no place for {first_few(names)}.")
        self.names = names


def check_alone(path: str, name: str, other: str | None) -> None:
    """Raises ValueError if another array of a file has the same parameter.

    Args:
      path: the file's.
      name: an array's.
      other: the other's. None if there is none.
    """
    if other is not None:
        raise ValueError(f"{path} has two arrays for one parameter: {other} and {name}.")


class Layout:
    """The rules of one way in which a format names its arrays.

    Args:
      title: what messages call the format.
      rules: the correspondences. Empty if the file has our own names.
      ignored: a regular expression, which fully matches the names of arrays that are no part of
        the encoder, such as those of a decoder.
      zeros: a regular expression, which fully matches our names of biases that files may lack.
        They are zeros then.
      class_rows: True if a table of positions has rows for class tokens, where there are any; None
        if it may have them; False if it has none, unless the other rows alone are of a square.
    """

    def __init__(
        self,
        title: str,
        rules: Iterable[Rule] = (),
        *,
        ignored: str = "",
        zeros: str = "",
        class_rows: bool | None = True,
    ):
        self.title, self._rules = title, tuple(rules)
        self._ignored, self.zeros = re.compile(ignored), re.compile(zeros)
        self.class_rows = class_rows

    def ignores(self, theirs: str) -> bool:
        """Returns True if an array of the file is no part of the encoder."""
        return bool(self._ignored.fullmatch(theirs))

    def slots(self, names: Iterable[str]) -> dict[str, Slot]:
        """Returns the arrays of a file that stores the parameters of these names.

        Args:
          names: our names of the parameters.

        Returns:
          The slots by the name of the array in the file.

        Raises:
          NoPlaceError: the format has no place for some parameters.
        """
        if not self._rules:
            return {name: Slot((name,), SAME) for name in names}
        slots, without_place = {}, []
        for name in names:
            for rule in self._rules:
                numbers = [n for t in rule.ours if (n := _match(t, name)) is not None]
                if numbers:
                    ours = tuple(_fill(template, numbers[0]) for template in rule.ours)
                    slots[_fill(rule.theirs, numbers[0])] = Slot(ours, rule.packing)
                    break
            else:
                without_place.append(name)
        if without_place:
            raise NoPlaceError(self.title, without_place)
        return slots

    def places(self, theirs: str, shape: Shape) -> dict[str, Place]:
        """Returns the parameters that a file's array contains, by our names.

        Args:
          theirs: the name of the array in the file.
          shape: the shape of the array.

        Returns:
          An empty dictionary if the format has no array of this name.
        """
        if not self._rules:
            known = _OUR_NAMES.match(theirs) and not _PRE_LINEN_NAMES.search(theirs)
            return {theirs: Place(theirs, shape, SAME, 0, 1)} if known else {}
        for rule in self._rules:
            if (numbers := _match(rule.theirs, theirs)) is not None:
                parts = len(rule.ours)
                if parts > 1 and shape and shape[0] % parts == 0:  # else it is refused later
                    shape = (shape[0] // parts, *shape[1:])
                shape = _unpacked_shape(rule.packing, shape)
                return {
                    _fill(template, numbers): Place(theirs, shape, rule.packing, part, parts)
                    for part, template in enumerate(rule.ours)
                }
        return {}


def slots(layouts: Iterable[Layout], names: Iterable[str]) -> dict[str, Slot]:
    """Returns the arrays of a file in the first layout that has a place for every parameter.

    Args:
      layouts: the ways in which a format names its arrays.
      names: our names of the parameters.

    Returns:
      The slots by the name of the array in the file.

    Raises:
      NoPlaceError: no layout has a place for every parameter. The error names what is left over in
        the layout that has a place for most of them. If several have, it is the last of these.
    """
    names, errors = list(names), []
    for layout in layouts:
        try:
            return layout.slots(names)
        except NoPlaceError as error:
            errors.append(error)
    raise min(reversed(errors), key=lambda error: len(error.names))


def recognise_layout(layouts: Iterable[Layout], names: Iterable[str]) -> Layout:
    """Returns the layout that recognises the largest number of arrays, the first of equals.

    Args:
      layouts: the ways in which a format names its arrays.
      names: the names of the arrays in the file.
    """
    names = list(names)
    return max(layouts, key=lambda layout: sum(bool(layout.places(name, ())) for name in names))


def _array_of(shape: Shape) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)  # takes no memory, nor do views of it


def _unpacked_shape(packing: Packing, shape: Shape) -> Shape:
    try:
        return packing.unpack(_array_of(shape)).shape
    except (IndexError, ValueError):  # the array has too few axes, which is reported later
        return shape


# A field of a template: a letter, "-1" or nothing, and ":02d" or nothing.
_FIELD = re.compile(r"\{(\w)(-1)?(?::(02)d)?\}")


def _fill(template: str, numbers: dict[str, int]) -> str:
    """Returns the name that a template gives for these numbers, by letter."""

    def text(field: re.Match) -> str:
        return format(numbers[field[1]] - bool(field[2]), f"{field[3] or ''}d")

    return _FIELD.sub(text, template)


def _match(template: str, name: str) -> dict[str, int] | None:
    """Returns the numbers for which `_fill` gives `name`, by letter. None if there are none."""
    pattern, offsets = _compile(template)
    if (match := pattern.fullmatch(name)) is None:
        return None
    return {key: int(value) + offsets[key] for key, value in match.groupdict().items()}


@functools.cache
def _compile(template: str) -> tuple[re.Pattern, dict[str, bool]]:
    """Returns the pattern of a template's names; and, by letter, True if 1 is subtracted there."""
    fields = list(_FIELD.finditer(template))
    ends = [0, *(field.end() for field in fields)]
    starts = [*(field.start() for field in fields), len(template)]
    texts = [re.escape(template[a:b]) for a, b in zip(ends, starts, strict=True)]
    groups = [*(f"(?P<{field[1]}>[0-9]{{1,4}})" for field in fields), ""]
    pattern = "".join(text + group for text, group in zip(texts, groups, strict=True))
    return re.compile(pattern), {field[1]: bool(field[2]) for field in fields}
