"""Every problem of a configuration or a command line is a clear line of the error message."""

import json
import math
import re
import subprocess
import sys

import pytest
from absl import flags
from conftest import REPOSITORY, environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict, config_flags

from vit_jax.cli.flags import SEE_KEYS, parse_flags
from vit_jax.config.defaults import default
from vit_jax.config.keys import all_keys, short_repr
from vit_jax.jobs import validation
from vit_jax.jobs.resume import changes

DEFAULT = default()
SECTIONS = tuple(key for key, value in DEFAULT.items() if isinstance(value, ConfigDict))
LEAVES = tuple(key for key in all_keys(DEFAULT) if key not in SECTIONS)  # compare.runs is one
MISSING = object()


def put(config, key, value):
    """Sets a key to anything, or removes it; does nothing if its section is missing."""
    *sections, name = key.split(".")
    for section in sections:
        config = config.get(section) if isinstance(config, ConfigDict) else None
    if not isinstance(config, ConfigDict):
        return
    if name in config:
        del config[name]
    if value is not MISSING:
        config[name] = value


def edited(edits):
    """The default configuration, ready to run, after a number of `put`."""
    config = default().unlock()
    config.total_steps = 10
    for key, value in edits:
        put(config, key, value)
    return config


def problems(config):
    """The lines of the error, [] if there is none; any other error is raised."""
    try:
        validation.validate(config, device_count=4)
    except ValueError as error:
        head, *lines = str(error).split("\n- ")
        assert head == "The configuration can't be run:"
        assert lines and not any("\n" in line for line in lines)
        return lines
    return []


# ------------------------------------------------------------------------------------- anything

WORDS = (
    "train",
    "sweep",
    "compare",
    "evaluate",
    "trian",
    "masked_patches",
    "pixels",
    "downsized",
    "sharded",
    "pmap",
    "skip",
    "cudnn",
    "bfloat16",
    "float16",
    "R50x1",
    "R50+B/16",
    "axial-b16",
    "Nano/8",
    "L/16",
    "gap",
    "sincos",
    "relative",
    "layers",
    "train[:85%]",
    "train[",
    "",
    " ",
    "\n",
)
HUGE = (2**31 - 1, 2**31, 10**30, -(10**30), 10**400)
numbers = st.one_of(
    st.integers(-3, 40), st.integers(), st.sampled_from(HUGE), st.floats(), st.floats(0, 1)
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.sampled_from(WORDS), st.text(max_size=9))
names = st.sampled_from(sorted({key.rpartition(".")[2] for key in LEAVES} | {*SECTIONS, "lrr"}))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(st.integers(1, 12), max_size=6).map(tuple),
        st.dictionaries(names, inner, max_size=3),
        st.dictionaries(names, inner, max_size=3).map(ConfigDict),
    ),
    max_leaves=6,
)


def of_its_type(key):
    """Values of the key's type; they can be out of range."""
    section, _, name = key.rpartition(".")
    kind = (DEFAULT[section] if section else DEFAULT).get_type(name)
    return {
        bool: st.booleans(),
        int: st.integers(0, 64),
        float: st.floats(0, 1),
        str: st.sampled_from(WORDS),
        tuple: st.lists(st.integers(1, 4), max_size=3).map(tuple),
    }.get(kind, values)


right = st.sampled_from(LEAVES).flatmap(lambda key: st.tuples(st.just(key), of_its_type(key)))
run = st.lists(right, max_size=3).map(
    lambda edits: (
        {k: v for k, v in edits if "." not in k}
        | {k.split(".")[0]: {k.split(".")[1]: v} for k, v in edits if "." in k}
    )
)
edits = st.lists(
    st.one_of(
        right,
        right,
        st.tuples(st.sampled_from(LEAVES + SECTIONS), values),
        st.tuples(st.sampled_from(LEAVES + SECTIONS), st.just(MISSING)),
        st.tuples(names, values),
        st.tuples(st.sampled_from(SECTIONS).map("{}.lrr".format), values),
        st.tuples(st.just("compare.runs"), st.dictionaries(names, run | values, max_size=3)),
    ),
    min_size=1,
    max_size=8,
)
KEY = re.compile("|".join(map(re.escape, LEAVES + SECTIONS)))


@settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(edits)
def test_any_configuration_is_valid_or_its_problems_are_listed(edits):
    config = edited(edits)
    lines = problems(config)
    for line in lines:
        assert KEY.search(line) or line.startswith("there is no key ")
    if not lines:
        assert changes(config, ConfigDict(json.loads(config.to_json()))) == []


@settings(
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(edits)
def test_any_saved_configuration_can_be_compared(edits):
    for line in changes(default(), edited(edits)):
        assert re.fullmatch(rf"({KEY.pattern}) was .*, is .*", line)


# ------------------------------------------------------- what was found like that, and by thinking


class Unprintable:
    def __repr__(self):
        raise RuntimeError


def nested():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    ("edits", "lines"),
    [
        ([("batch_size", None)], ["batch_size=None must be a whole number (of 32 bits)."]),
        ([("batch_size", True)], ["batch_size=True must be a whole number (of 32 bits)."]),
        ([("batch_size", 10**30)], [f"batch_size={10**30} must be a whole number (of 32 bits)."]),
        ([("seed", -(10**5000))], ["seed=<int> must be a whole number (of 32 bits)."]),
        ([("optim.lr", 10**5000)], ["optim.lr=<int> must be a finite number."]),
        ([("optim.clip_norm", math.inf)], ["optim.clip_norm=inf must be a finite number."]),
        ([("optim.momentum", None)], ["optim.momentum=None must be a finite number."]),
        ([("data.flip", "no")], ["data.flip='no' must be True or False."]),
        ([("data.dir", 3)], ["data.dir=3 must be text or None."]),
        ([("job", ["train"])], ["job=['train'] must be text."]),
        ([("model.variant", 16)], ["model.variant=16 must be text."]),
        (
            [("model.stem", (1, "a"))],
            ["model.stem=(1, 'a') must be whole numbers (of 32 bits), such as (3, 4) or None."],
        ),
        (
            [("fewshot.shots", 5)],
            ["fewshot.shots=5 must be whole numbers (of 32 bits), such as (1, 5, 10, 25)."],
        ),
        (
            [("sweep.lr", (0.1, math.nan))],
            ["sweep.lr=(0.1, nan) must be finite numbers, such as (0.001, 0.003, 0.01, 0.03)."],
        ),
        ([("compare.epochs", "")], ["compare.epochs='' must be finite numbers, such as (3, 4)."]),
        (
            [("data.image_size", [[16], 16])],
            ["data.image_size=[[16], 16] must be pixels: one side or (height, width)."],
        ),
        ([("data.train", b"train")], ["data.train=b'train' must be text or None."]),
        (
            [("log_every", Unprintable())],
            ["log_every=<Unprintable> must be a whole number (of 32 bits)."],
        ),
        ([("log_every", nested())], ["log_every=<list> must be a whole number (of 32 bits)."]),
        ([("optim", None)], ["optim=None must be a section, a ConfigDict."]),
        (
            [("optim.name", MISSING)],
            ["optim.name is missing: start from vit_jax.config.default()."],
        ),
        ([("compare", MISSING)], ["compare is missing: start from vit_jax.config.default()."]),
        ([("compare.runs", (1,))], ["compare.runs=(1,) must be a section, a ConfigDict."]),
        ([("data.name", {"a": 1})], ["data.name={'a': 1} must be text."]),
        ([("line\nbreak", 1)], ["there is no key line break."]),
        (
            [("compare.runs", ConfigDict({1: {}}))],
            ["compare.runs: a run's name is text, with a letter or a digit in it."],
        ),
        (
            [("compare.runs", ConfigDict({"-": {}}))],
            ["compare.runs: a run's name is text, with a letter or a digit in it."],
        ),
        (
            [("data.name", config_dict.required_placeholder(str))],
            [
                "data.name=RequiredValueError('None value found in required reference') must be "
                "text."
            ],
        ),
        # The value of an unknown key has no effect on the problems of others.
        (
            [("model.hidden", 3), ("model.num_heads", 7)],
            [
                "there is no key model.hidden.",
                "model: width=768 is not a multiple of num_heads=7, so "
                "the attention heads can't share it evenly.",
            ],
        ),
    ],
)
def test_bad_values_are_shown_as_they_are(edits, lines):
    assert problems(edited(edits)) == lines


def uncomputable(config):
    one = config_dict.FieldReference(1.0)
    config.optim.lr = 1 / one
    one.set(0.0)


def keys_without_order(config):
    config.optim[3] = 1


def a_section_that_is_the_whole(config):
    config.optim = config


def a_run_that_is_the_whole(config):
    config.compare.runs = ConfigDict({"a": config})


def a_run_without_order(config):
    config.compare.runs = ConfigDict({"a": ConfigDict({3: 1, "seed ": 1}), "b": {"optim": {4: 1}}})


def stages_beyond_counting(config):
    config.model.update(variant="R50+B/16", stem=(1,) * 20_000)
    config.objective = "masked_patches"


@pytest.mark.parametrize(
    ("damage", "first"),
    [
        (uncomputable, "optim.lr=ZeroDivisionError('float division by zero') must be a finite"),
        (keys_without_order, "optim has keys that are not text."),
        (a_section_that_is_the_whole, "there is no key optim.accumulate_steps; did you mean acc"),
        (a_run_that_is_the_whole, "compare.runs.a: job='compare' sets job, seed, compare itself"),
        (a_run_without_order, "compare.runs.a: the configuration has keys that are not text."),
        (stages_beyond_counting, "model.stem=(1, 1, 1, "),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_damaged_configurations_get_a_message(damage, first):
    config = edited([])
    damage(config)
    assert problems(config)[0].startswith(first)


@pytest.mark.parametrize("name", ["/\0", "/\ud800", "/" + "x" * 5000, "~no-such-user/x", 3])
def test_a_saved_folder_that_no_path_can_have_is_a_change(name):
    assert changes(default(), edited([("data.name", name)])) == [
        f"data.name was {short_repr(name)}, is 'rendered_flowers'"
    ]


def test_each_change_of_a_saved_configuration_is_one_line():
    saved = edited([("batch_size", {"a": {}}), ("data.name", None), ("optim", 3)])
    assert changes(default(), saved) == [
        "batch_size was {'a': {}}, is 512",
        "data.name was None, is 'rendered_flowers'",
    ]


# ------------------------------------------------------------------------------ the command line


FILE = """
from vit_jax import config

def get_config(argument=""):
    settings = config.default()
    exec(argument)
    return settings
"""


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """Arguments of a command -> the message that it ends with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.py").write_text(FILE)
    (tmp_path / "syntax.py").write_text("def get_config(:\n")
    (tmp_path / "imports.py").write_text("import no_such_module\n")
    (tmp_path / "nothing.py").write_text("get = 1\n")

    def parse(*arguments):
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        command = ["main", *arguments]
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
        with pytest.raises(SystemExit) as error:
            parse_flags(command, values)
        return error.value.code

    return parse


@pytest.mark.parametrize(
    ("keys", "lines"),
    [
        (["optim.lrr=1"], ["there is no key optim.lrr; did you mean optim.lr?"]),
        (
            ["lr=1", "batchsize=2", "seed=1"],
            [
                "there is no key lr; did you mean optim.lr?",
                "there is no key batchsize; did you mean batch_size?",
            ],
        ),
        (["optm.lr=1"], ["there is no key optm.lr; did you mean optim.lr?"]),
        (["optim.lr.x=1"], ["there is no key optim.lr.x; did you mean optim.lr?"]),
        (["sweep.lr[9]=1"], ["there is no key sweep.lr[9]; did you mean sweep.lr?"]),
        (["a-b=1"], ["there is no key a-b."]),
        (["compare.runs.a.seed=1"], ["there is no key compare.runs.a.seed; did you mean seed?"]),
    ],
)
def test_all_unknown_keys_are_listed_at_once(refusal, keys, lines):
    text = refusal("--config=good.py", *(f"--config.{key}" for key in keys))
    text, _, pointer = text.rpartition("\n")
    assert text.split("\n- ") == ["The command line can't be used:", *lines]
    assert pointer == SEE_KEYS


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("batch_size=abc", ["'abc'", "batch_size must be a whole number (of 32 bits)."]),
        ("optim.lr=abc", ["'abc'", "optim.lr must be a finite number."]),
        ("data.flip=maybe", ["'maybe'", "data.flip must be True or False."]),
        ("fewshot.shots=(1,", ["must be whole numbers (of 32 bits), such as (1, 5, 10, 25)."]),
        ("optim=5", ["optim must be a section"]),
    ],
)
def test_for_a_value_of_another_type_the_message_says_what_fits(refusal, value, parts):
    text = refusal("--config=good.py", f"--config.{value}")
    assert text.startswith(f"flag --config.{value}: ") and "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--config=god.py"],
            f"There is no configuration file 'god.py'; did you mean good.py? {SEE_KEYS}",
        ),
        (
            ["--config=god.py", "--config.optim.lr=1"],
            f"There is no configuration file 'god.py'; did you mean good.py? {SEE_KEYS}",
        ),
        (["--config", "a/b.py:c"], f"There is no configuration file 'a/b.py'. {SEE_KEYS}"),
        (
            ["--config=syntax.py"],
            "--config=syntax.py: SyntaxError: invalid syntax (syntax.py, line 1)",
        ),
        (
            ["--config=imports.py"],
            "imports.py, line 1: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            ["--config=nothing.py"],
            "--config=nothing.py: AttributeError: module 'config_config' has no attribute "
            "'get_config'",
        ),
        (["--config=good.py:1/0"], "good.py, line 6: ZeroDivisionError: division by zero"),
        (["--config=good.py:{}[1]", "--config.lr=1"], "good.py, line 6: KeyError: 1"),
        (
            ["--config=good.py:open('x')"],
            "good.py, line 6: FileNotFoundError: [Errno 2] No such file or directory: 'x'",
        ),
        (
            ["--config=good.py:settings.optim.lrr=1"],
            'good.py, line 6: AttributeError: \'Key "lrr" does not exist and cannot be added since '
            'the config is locked. Did you mean "lr" instead of "lrr"?\'',
        ),
        (
            ["--config=good.py:settings.seed='a'"],
            "flag --config=good.py:settings.seed='a': TypeError: Could not override field 'seed' "
            "(reference). a is of original type <class 'str'> and cannot be casted to type "
            "<class 'int'>",
        ),
    ],
)
def test_an_error_in_a_configuration_file_is_one_line(refusal, arguments, text):
    assert refusal(*arguments) == text


def test_the_command_ends_with_every_problem_and_without_a_traceback(tmp_path):
    (tmp_path / "bad.py").write_text(
        FILE.replace("exec(argument)", "settings.seed = None; settings.data.train = 'train['")
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vit_jax.main",
            f"--config={tmp_path}/bad.py",
            f"--workdir={tmp_path}/run",
            "--config.model.width=100",
            "--config.optim.lr=nan",
        ],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-6:] == [
        "ValueError: The configuration can't be run:",
        "- data.train: 'train[' is not a split: write one like 'train', 'train[:85%]', "
        "'train[800:1000]' or 'train+validation'.",
        "- optim.lr=nan must be a finite number.",
        "- seed=None must be a whole number (of 32 bits).",
        "- neither total_steps nor epochs is set: one of them gives the run its length.",
        "- model: width=100 is not a multiple of num_heads=12, so the attention heads can't share "
        "it evenly.",
    ]
    assert not (tmp_path / "run").exists()
