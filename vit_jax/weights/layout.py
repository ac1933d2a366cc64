"""layout"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Kind(NamedTuple):
    """How an array of ours lies in a file.

    Attributes:
      pack: our array -> the file's.
      unpack: the file's array -> ours, but for a reshape.
    """

    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], np.ndarray]


SAME = Kind(lambda x: x, lambda y: y)
OUR_NAMES = re.compile(
    r"(cls|(embedding|pre_logits|head)/|Transformer/|(conv|gn)_root/|gn_pre_head/|block\d+/unit\d+/)"
)
PRE_LINEN_NAMES = re.compile(r"MultiHeadDotProductAttention_1|LayerNorm_2|MlpBlock_3")


class Rule(NamedTuple):
    """One kind of array: templates of our names, the template of the file's, and the change."""

    ours: tuple[str, ...]
    theirs: str
    kind: Kind = SAME


class Slot(NamedTuple):
    """One array of a file: our parameters in it, in this order along axis 0."""

    ours: tuple[str, ...]
    kind: Kind

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Returns the shape in the file, given those of our parameters."""
        parts = [self._packed(shapes[name]) for name in self.ours]
        return (sum(p[0] for p in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]

    def join(self, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the file's array, C-contiguous, of our parameters."""
        packed = [self.kind.pack(x) for x in arrays]
        return np.ascontiguousarray(packed[0] if len(packed) == 1 else np.concatenate(packed))

    def part(self, array: np.ndarray, name: str, shapes: dict[str, Shape]) -> np.ndarray:
        """Returns our parameter `name` of the file's array."""
        if len(self.ours) > 1:
            lengths = [self._packed(shapes[other])[0] for other in self.ours]
            at = self.ours.index(name)
            array = array[sum(lengths[:at]) : sum(lengths[: at + 1])]
        return self.kind.unpack(array).reshape(shapes[name])

    def _packed(self, shape: Shape) -> Shape:
        return self.kind.pack(_of_shape(shape)).shape


class NoPlaceError(ValueError):
    """A format can't hold some parameters; `names` are those."""

    def __init__(self, title: str, names: list[str]):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        super().__init__(f"The {title} format has no place for {', '.join(names[:5])}{more}.")
        self.names = names


class Layout:
    """The rules of one spelling of one format.

    Args:
      title: what the format is called in messages.
      rules: its rules, none for a file that has our own names.
    """

    def __init__(self, title: str, rules: Iterable[Rule] = ()):
        self.title, self._rules = title, tuple(rules)

    def slots(self, names: Iterable[str]) -> dict[str, Slot]:
        """Returns the arrays, by name, of a file that holds our parameters.

        Raises:
          NoPlaceError: the format has no place for some of them.
        """
        if not self._rules:
            return {name: Slot((name,), SAME) for name in names}
        slots, homeless = {}, []
        for name in names:
            for rule in self._rules:
                numbers = [n for t in rule.ours if (n := _numbers(t, name)) is not None]
                if numbers:
                    ours = tuple(_fill(template, numbers[0]) for template in rule.ours)
                    slots[_fill(rule.theirs, numbers[0])] = Slot(ours, rule.kind)
                    break
            else:
                homeless.append(name)
        if homeless:
            raise NoPlaceError(self.title, homeless)
        return slots

    def ours(self, theirs: str, shape: Shape) -> dict[str, Shape]:
        """Returns our names in the file's array `theirs`, with its shape in our order of axes.

        Empty where the format knows no such array. The shapes are not yet ours: heads are not
        split, and each of several parameters in one array gets the shape of the whole.
        """
        if not self._rules:
            return (
                {theirs: shape}
                if OUR_NAMES.match(theirs) and not PRE_LINEN_NAMES.search(theirs)
                else {}
            )
        for rule in self._rules:
            if (numbers := _numbers(rule.theirs, theirs)) is not None:
                return {_fill(t, numbers): _unpacked(rule.kind, shape) for t in rule.ours}
        return {}


def _of_shape(shape: Shape) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)  # takes no memory, nor do its views


def _unpacked(kind: Kind, shape: Shape) -> Shape:
    try:
        return kind.unpack(_of_shape(shape)).shape
    except (IndexError, ValueError):  # not the axes there should be: reported with all others
        return shape


_FIELD = re.compile(r"\{(\w)(-1)?(?::(02)d)?\}")


def _fill(template: str, numbers: dict[str, int]) -> str:
    def field(match):
        return format(numbers[match[1]] - bool(match[2]), f"{match[3] or ''}d")

    return _FIELD.sub(field, template)


def _numbers(template: str, name: str) -> dict[str, int] | None:
    """Returns the numbers for which `template` is `name`, None where it can't be."""
    if template not in _PATTERNS:
        fields = list(_FIELD.finditer(template))
        ends = [0, *(m.end() for m in fields)]
        starts = [*(m.start() for m in fields), len(template)]
        texts = [re.escape(template[a:b]) for a, b in zip(ends, starts, strict=True)]
        groups = [*(f"(?P<{m[1]}>[0-9]{{1,4}})" for m in fields), ""]
        pattern = "".join(text + group for text, group in zip(texts, groups, strict=True))
        _PATTERNS[template] = re.compile(pattern), {m[1]: bool(m[2]) for m in fields}
    pattern, offsets = _PATTERNS[template]
    if (match := pattern.fullmatch(name)) is None:
        return None
    return {key: int(value) + offsets[key] for key, value in match.groupdict().items()}


_PATTERNS: dict[str, tuple[re.Pattern, dict[str, bool]]] = {}


def slots(layouts: Iterable[Layout], names: Iterable[str]) -> dict[str, Slot]:
    """Returns the arrays of a file in the first of the layouts that can hold our parameters.

    Raises:
      NoPlaceError: none can; those are named that the best of them, the last of several, can't.
    """
    names, errors = list(names), []
    for layout in layouts:
        try:
            return layout.slots(names)
        except NoPlaceError as error:
            errors.append(error)
    raise min(reversed(errors), key=lambda error: len(error.names))


def recognise_layout(layouts: Iterable[Layout], names: Iterable[str]) -> Layout:
    """Returns the layout that knows most of a file's arrays, the first of several such."""
    names = list(names)
    return max(layouts, key=lambda layout: sum(bool(layout.ours(name, ())) for name in names))
