import pytest

from vit_jax.common.messages import closest, first_few


@pytest.mark.parametrize(
    ("items", "options", "text"),
    [
        ([], {}, ""),
        (["a"], {}, "a"),
        ("abcde", {}, "a, b, c, d, e"),
        ("abcdef", {}, "a, b, c, d, e and 1 more"),
        ("abcde", {"most": 2}, "a, b and 3 more"),
        ("abcde", {"most": 2, "separator": "; "}, "a; b and 3 more"),
        ("abcde", {"most": 2, "separator": "\n"}, "a\nb\nand 3 more"),
        (range(7), {"most": 3}, "0, 1, 2 and 4 more"),
        ((name for name in ("x", "y")), {"most": 1}, "x and 1 more"),
    ],
)
def test_first_few(items, options, text):
    assert first_few(items, **options) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adamw", " (did you mean 'adam'?)"),
        ("sgdd", " (did you mean 'sgd'?)"),
        ("nothing like it", ""),
        ("", ""),
    ],
)
def test_closest(name, text):
    assert closest(name, ("sgd", "adam")) == text


def test_closest_suggests_several_names_if_asked():
    known = {"cifar10": 1, "cifar100": 2, "imagenet2012": 3}
    assert closest("cifar1O", known, most=3) == " (did you mean 'cifar10' or 'cifar100'?)"
    assert closest("cifar1O", known, most=1) == " (did you mean 'cifar10'?)"
    assert closest("cifar1O", known, likeness=0.95) == ""
