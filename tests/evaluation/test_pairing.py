"""Which logit is for which class of the data: found by names and ids, or refused."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.evaluation.pairing import pair_classes, with_classes
from vit_jax.weights.class_names import imagenet_classes

IDS, NAMES = [*imagenet_classes()], [*imagenet_classes().values()]
NUMBERS = [str(i) for i in range(1000)]
# The folders of Imagenette, as tfds and as people name them, and their logits of ImageNet-1k.
NETTE = {
    "n01440764": "tench",
    "n02102040": "English_springer",
    "n02979186": "cassette player",
    "n03000684": "chain_saw",
    "n03028079": "church",
    "n03394916": "french horn",
    "n03417042": "garbage_truck",
    "n03425413": "gas_pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
NETTE_LOGITS = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


def head(names=(), count=None, seed=0):
    """A checkpoint that is a head alone."""
    count = count or len(names)
    rng = np.random.default_rng(seed)
    params = {"head": {"kernel": rng.normal(size=(4, count)), "bias": rng.normal(size=count)}}
    return Checkpoint("imagenet2012.npz", params, ConfigDict(), tuple(names), 0)


@pytest.mark.parametrize(
    ("model", "data", "logits", "by"),
    {
        "same": ("ab", "ab", [0, 1], "name"),
        "other order": ("abc", "cab", [2, 0, 1], "name"),
        "a part": ("abc", "c", [2], "name"),
        "Unicode form": (["caf\u00e9", "b"], ["b", "cafe\u0301"], [1, 0], "name"),
        "numbers are names": (["1", "0"], ["0", "1"], [1, 0], "name"),
        "names twice": (NAMES, NAMES, range(1000), "name"),
        "ids": (IDS, list(NETTE), NETTE_LOGITS, "name"),
        "ids of names": (NAMES, list(NETTE), NETTE_LOGITS, "WordNet id"),
        "all ids of names": (NAMES, IDS, range(1000), "WordNet id"),
        "ids of no names": (1000, IDS[::-1], range(999, -1, -1), "WordNet id"),
        "names in another order": (
            [name for name in NAMES[::-1] if name != "crane"],
            ["n02963159", "n02113186"],
            [999 - 474 - 1, 999 - 263 - 2],
            "WordNet id",
        ),
        "ids before words": (NAMES, ["n01440764_tench", "n01443537-x"], [0, 1], "WordNet id"),
        "two cranes": (NAMES, ["n03126707", "n02012849"], [517, 134], "WordNet id"),
        "lemmas": (NAMES, list(NETTE.values()), NETTE_LOGITS, "name and lemma"),
        "lemmas of no names": (1000, list(NETTE.values()), NETTE_LOGITS, "name and lemma"),
        "lemmas of ids": (IDS, list(NETTE.values()), NETTE_LOGITS, "whole name and lemma"),
        "whole names": (NAMES, ["tench_tinca_tinca", "MISSILE"], [0, 657], "whole name"),
        "names of one word": (["Tench", "Goldfish"], ["n01443537"], [1], "WordNet id"),
        "spaces": (["New York", "Rome"], ["rome", "new_york"], [1, 0], "whole name"),
        "ImageNet-V2": (1000, NUMBERS, range(1000), "number"),
        "ImageNet-V2, names": (NAMES, [f"{i:03d}" for i in range(1000)], range(1000), "number"),
        "no names": (3, "xyz", [0, 1, 2], "number"),
    }.values(),
)
def test_pairs(model, data, logits, by):
    checkpoint = head(count=model) if isinstance(model, int) else head(model)
    assert pair_classes(checkpoint, [*data], "DATA") == (tuple(logits), by)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    {
        "missing": ("ab", "bc", r"has 2 classes \(a; b\), but DATA has 2 .*checkpoint's: c\. So"),
        "other thousand": (
            1000,
            [f"x{i}" for i in range(1000)],
            "checkpoint's: x0; x1; .* 992 more",
        ),
        "numbers of a part": (1000, NUMBERS[:10], "none of the checkpoint's: 0; 1"),
        "numbers from 1": (1000, [str(i + 1) for i in range(1000)], "none of the checkpoint's: 1;"),
        "numbers of names": ("ab", "01", "none of the checkpoint's: 0; 1"),
        "another number": (5, "abcd", "has 5 classes, but DATA has 4 .* no names of classes"),
        "unknown id": (NAMES, ["n01440764", "n99999999"], r"checkpoint's: n99999999\. So"),
        "crane": (NAMES, ["crane"], r"crane may be 'crane' \(logit 134\) or 'crane' \(logit 517\)"),
        "panda": (NAMES, ["panda"], r"panda may be 'lesser panda.* \(logit 387\) or 'giant"),
        "same logit": (NAMES, ["tench", "n01440764"], "tench, n01440764 are .* logit 0, 'tench, T"),
    }.values(),
)
def test_what_cannot_be_paired_is_refused(model, data, message):
    checkpoint = head(count=model) if isinstance(model, int) else head(model)
    with pytest.raises(ValueError, match=message) as error:
        pair_classes(checkpoint, [*data], "DATA")
    assert "class_map.csv" in str(error.value)


@pytest.mark.parametrize(
    ("model", "rows", "logits"),
    [
        ("abc", "class,model_class\nx,c\ny,a\n", [2, 0]),
        ("abc", "\ufeffclass,model_class\r\ny,0\r\nx,2\r\n", [2, 0]),  # as Excel writes it
        (3, "model_class,class\n2,x\n0,y\n", [2, 0]),
        (["0", "1", "2"], "class,model_class\nx,2\ny,0\n", [2, 0]),
        (NAMES, 'class,model_class\nx,"tench, Tinca tinca"\ny,517\n', [0, 517]),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_file_gives_the_pairs(tmp_path, model, rows, logits, beside):
    (tmp_path / ("class_map.csv" if beside else "map.csv")).write_text(rows, encoding="utf-8")
    checkpoint = head(count=model) if isinstance(model, int) else head(model)
    class_map = None if beside else str(tmp_path / "map.csv")
    data = str(tmp_path) if beside else "NAME"
    found = pair_classes(checkpoint, ["x", "y"], data, class_map)
    assert found == (tuple(logits), "class_map.csv" if beside else "map.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have the columns class and model_class, separated by a comma"),
        (b"class;model_class\nx;a\n", "must have the columns"),
        (b"class,model_class\n", "must have the columns"),
        (b"class,model_class\nx,a\n", "lacks classes of the data: y"),
        (b"class,model_class\nx,a\ny,b\nz,b\n", "classes that the data don't have: z"),
        (b"class,model_class\nx,a\nx,b\n", "row 3: 'x' has a second row"),
        (b"class,model_class\nx,a\ny,d\n", "row 3: 'd' is neither .* a logit, 0 to 1"),
        (b"class,model_class\nx,a\ny\n", "row 3: '' is neither"),
        (b"class,model_class\nx,a\ny,2\n", "row 3: '2' is neither"),
        (b"class,model_class\nx,a\ny,-1\n", "row 3: '-1' is neither"),
        (b"class,model_class\nx,a\ny,0\n", "x, y are different classes .* logit 0, 'a'"),
        (b"class,model_class\nx,\xff\n", "isn't a CSV file in UTF-8"),
    ],
)
def test_a_file_that_gives_no_pairs_is_refused(tmp_path, content, message):
    (tmp_path / "map.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        pair_classes(head("ab"), ["x", "y"], "NAME", str(tmp_path / "map.csv"))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.class_map: there is no file .*map\.csv"):
        pair_classes(head("ab"), ["x", "y"], "NAME", str(tmp_path / "map.csv"))
    path = tmp_path / "map.csv"
    path.write_text("class,model_class\nx,crane\n")
    with pytest.raises(ValueError, match="the logits 134 and 517 are both called 'crane'"):
        pair_classes(head(NAMES), ["x"], "NAME", str(path))


def test_the_logits_are_those_of_the_data(rng):
    """They are columns of the model's, in parameters and average; probabilities sum to 1."""
    checkpoint = head("abcd")._replace(average=head("abcd", seed=1).params)
    names = ("d", "b")
    found = with_classes(checkpoint, pair_classes(checkpoint, names, "DATA"), names)
    x = rng.normal(size=(5, 4))
    assert (found.class_names, found.num_classes) == (names, 2)
    for before, after in zip(checkpoint[1::4], found[1::4], strict=True):
        old, new = before["head"], after["head"]
        logits = x @ old["kernel"] + old["bias"]
        np.testing.assert_allclose(x @ new["kernel"] + new["bias"], logits[:, [3, 1]], rtol=1e-12)
