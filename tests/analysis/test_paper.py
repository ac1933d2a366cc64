"""The plan of the paper: its rows, its arithmetic, and a file that is continued."""

import importlib.util

import pytest
from conftest import IMAGE, REPOSITORY
from test_plan import settings_of

import vit_jax.plan as plan_command
from vit_jax.analysis import hlo, paper
from vit_jax.plan import main

# Of the public code, at 224 pixels, without a head.
PARAMETERS = {
    "B/32": 87_455_232,
    "B/16": 85_798_656,
    "L/32": 305_510_400,
    "L/16": 303_301_632,
    "H/14": 630_764_800,
    "R50+B/16": 97_890_112,
    "R50+L/32": 327_969_856,
}
RESNETS = {  # with 1,000 classes
    "R50x1": 25_549_352,
    "R50x2": 97_988_712,
    "R101x1": 44_541_480,
    "R152x1": 60_185_128,
    "R152x2": 236_335_208,
    "R200x3": 568_633_000,
}
WIDTH = {"B": 768, "L": 1024, "H": 1280}
CLASSES = {"jft_300m": 18_291, "imagenet21k": 21_841, "imagenet2012": 1000}


def test_every_row_of_the_papers_tables_is_there():
    found = paper.trainings()
    assert len(found) == len(set(found)) == 18 + 6 + 4
    tables = [(row.variant, row.data, row.tables) for row in found]
    assert ("H/14", "jft_300m", "2, 3, 6") in tables
    assert ("R200x3", "jft_300m", "6") in tables
    assert ("L/32", "imagenet2012", "3") in tables
    assert sum("2" in row.tables for row in found) == 3
    programs = list(paper.programs(["v3:4x4"]))
    assert len(programs) == len({row[:2] for row in found}) == 15 + 4 + 4
    assert programs[:3] == [(*row[:2], "v3:4x4") for row in found if "2" in row.tables]


def test_days_at_full_speed_are_those_of_the_arithmetic():
    """A core of 61.5 TFLOP/s computes 5.3136 exaFLOPs a day; an H100 of 989, 85.4496."""
    assert paper.device_days(53.136, "TPU v3", utilization=1) == pytest.approx(10)
    assert paper.device_days(53.136, "TPU v3", utilization=0.4) == pytest.approx(25)
    assert paper.device_days(85.4496, "NVIDIA H100 80GB HBM3", utilization=1) == pytest.approx(1)


def test_recipes_are_the_papers():
    config = paper.recipe("R200x3", "jft_300m", "v5e:4x4")
    assert (config.model.variant, config.batch_size, config.dtype) == ("R200x3", 4096, "bfloat16")
    assert (config.parallel, config.model.scan) == ("sharded", None)
    config = paper.recipe("H/14", "jft_300m", "h100:8")
    assert (config.parallel, config.model.scan, config.optim.lr) == ("pmap", True, 3e-4)


def test_a_file_is_continued_where_it_ended(tmp_path, monkeypatch):
    """Of a tiny model, for this machine's devices: nothing is compiled twice."""
    log, path = [], tmp_path / "plan.csv"

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda x: find(x) if x != "libtpu" else None)

    def get_config(variant, data, topology):
        config = settings_of("nowhere")
        config.model.variant = variant
        return config

    programs = [("B/32", "imagenet2012", "local"), ("B/16", "imagenet2012", "v5e:4x4")]
    paper.compile_programs(path, programs, log.append, get_config)
    (row,) = paper.read_rows(path)
    assert (row["variant"], row["data"], row["chips"]) == ("B/32", "imagenet2012", "8")
    tokens = (IMAGE // 8) ** 2 + 1
    block = 4 * 24 * 25 + 24 * 33 + 32 * 25 + 4 * 24  # attention, MLP, two norms
    embedding = 24 * (8 * 8 * 3 + 1) + 24 + tokens * 24  # patches, class token, positions
    assert int(row["parameters"]) == embedding + block + 2 * 24 + 1000 * 25
    assert len(log) == 2 and "libtpu" in log[1]
    paper.compile_programs(path, programs[:1], log.append, get_config)
    assert len(log) == 2


def test_the_kept_plan_has_the_papers_parameters():
    rows = paper.read_rows(paper.KEPT)
    assert rows
    for row in rows:
        variant, classes = row["variant"], CLASSES[row["data"]]
        if variant in PARAMETERS:
            width = WIDTH[variant.split("+")[-1][0]]
            pre_logits, head = width * (width + 1), classes * (width + 1)
            assert int(row["parameters"]) == PARAMETERS[variant] + pre_logits + head
        elif variant in RESNETS:
            more = (classes - 1000) * (2048 * int(variant[-1]) + 1)
            assert int(row["parameters"]) == RESNETS[variant] + more
        else:
            assert variant in ("R50+B/32", "R50+L/16")  # without a published count
        assert float(row["total_bytes"]) <= float(row["memory_bytes"])
        assert 0.95 < float(row["compiled_flops_ratio"]) < 1.1


def test_the_page_shows_the_kept_plan(capsys):
    main(["--paper"])
    lines = capsys.readouterr().out.splitlines()
    page = (REPOSITORY / "docs" / "paper_plan.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in page
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    paper_days = {tuple(row[:3]): row[-1] for row in cells[2:] if row[-1]}
    assert paper_days == {
        ("H/14", "jft_300m", "14"): "2500",
        ("L/16", "jft_300m", "14"): "680",
        ("L/16", "imagenet21k", "90"): "230",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paper", "--topology=v3:4x4"], "--paper takes no other flag"),
        (["--paper=plan.csv", "--topology=v4:2x2x4"], "only --topology, one of v3:4x4"),
        (["--paper", "--json"], "--paper takes no other flag"),
        (["--paper", "--config=configs/pretrain.py"], "--paper takes no other flag"),
        ([], "--topology is needed"),
    ],
)
def test_mistakes_are_told(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [b"step,loss\n1,2\n", b"", b"\xff\x00", paper.KEPT.read_bytes()[:400]],
    ids=["other", "empty", "binary", "cut"],
)
def test_a_file_of_something_else_is_not_written_to(tmp_path, monkeypatch, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    monkeypatch.setattr(plan_command, "without_tpu", lambda: None)
    with pytest.raises(SystemExit, match="isn't a plan of the paper"):
        main([f"--paper={path}"])
    assert path.read_bytes() == content


def test_the_page_compares_the_estimate_with_the_papers_core_days():
    page = (REPOSITORY / "docs" / "paper_plan.md").read_text(encoding="utf-8")
    rows = {(row["variant"], row["data"]): row for row in paper.read_rows(paper.KEPT)}
    for (variant, data, epochs), published in paper.TABLE_2.items():
        flops = float(rows[variant, data]["flops_per_image"])
        images = {"jft_300m": 303_000_000, "imagenet21k": 14_197_122}[data] * epochs
        days = flops * images / 61.5e12 / 86400
        assert f"| {published:,} | {days / published:.0%} | {days / 0.4:,.0f} |" in page
        assert f"| {days / 0.4 / published - 1:+.0%} |" in page


NESTED = """\
%inner (p: f32[24,8,4], i: s32[]) -> f32[8,4] {
  %p = f32[24,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %dynamic-slice.1 = f32[1,8,4]{2,1,0} dynamic-slice(%p, %i, %i, %i)
}

%outer (q: f32[24,8,4], j: s32[], r: f32[24,8,4]) -> f32[24,8,4] {
  %q = f32[24,8,4]{2,1,0} parameter(0)
  %j = s32[] parameter(1)
  %r = f32[24,8,4]{2,1,0} parameter(2)
  %fusion.2 = f32[1,8,4]{2,1,0} fusion(%q, %j), kind=kLoop, calls=%inner
  ROOT %dynamic-update-slice.1 = f32[24,8,4]{2,1,0} dynamic-update-slice(%r, %fusion.2, %j, %j, %j)
}

ENTRY %main (a: f32[24,8,4], b: s32[], c: f32[24,8,4]) -> f32[24,8,4] {
  %a = f32[24,8,4]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[24,8,4]{2,1,0} parameter(2)
  ROOT %fusion.3 = f32[24,8,4]{2,1,0} fusion(%a, %b, %c), kind=kLoop, calls=%outer
}
"""


def test_of_arrays_that_fusions_within_fusions_slice_the_slices_count():
    """One layer of 24 is read, and one is written, beside the 4 bytes of its number."""
    assert hlo.count_costs(NESTED, devices=1).bytes_accessed == 2 * 8 * 4 * 4 + 4
