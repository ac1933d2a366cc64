"""FLOPs against timm's and the paper's published numbers, and counts by hand."""

import jax
import numpy as np
import pytest

from vit_jax.cost import main
from vit_jax.models.flops import count_flops, forward_flops
from vit_jax.models.layers import IMPLEMENTATIONS

# GMACs with 1,000 classes at 224 and 384 pixels, as timm publishes them.
TIMM_GMACS = {
    "Ti/16": (1.26, 4.70),
    "S/32": (1.15, 3.45),
    "B/16": (17.58, 55.54),
    "L/16": (61.60, 191.21),
    "H/14": (167.40, None),
    "R+Ti/16": (0.44, 1.34),
    "R50+B/16": (21.66, 67.43),
    "R50+L/32": (19.58, 57.43),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", TIMM_GMACS)
def test_flops_reproduce_timms(variant):
    """timm's counter counts norms, standardised kernels and padding, too."""
    for image_size, gmacs in zip((224, 384), TIMM_GMACS[variant], strict=True):
        if gmacs:
            options = dict(num_classes=1000, elementwise=True, padding=True)
            flops = forward_flops(variant, image_size, **options)
            assert flops / 2e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.slow
def test_the_command_prints_the_papers_table_6_beside_ours(capsys):
    """Its rows of R50x1+ViT-L/16, 859 and 1,668, aren't one twice the other."""
    main(["--table=6"])
    header, *lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert header.split() == ["model", "epochs", "paper,", "exaFLOPs", "ours", "difference"]
    rows = [line.split() for line in lines]
    assert len(rows) == 18
    published = {("B/32", "7"): "55", ("H/14", "14"): "4262", ("R50+B/16", "7"): "274"}
    for model, epochs, paper, ours, difference in rows:
        assert published.get((model, epochs), paper) == paper
        gap = float(ours) / float(paper) - 1
        is_named = (model, epochs) in (("R50+L/16", "7"), ("B/32", "7"))
        assert (abs(float(difference.rstrip("%"))) > 1) == is_named
        rounding = 5e-4 + 0.5 / float(paper)
        assert float(difference.rstrip("%")) / 100 == pytest.approx(gap, abs=rounding)
    exaflops = {(model, epochs): float(ours) for model, epochs, _, ours, _ in rows}
    expected = 3 * forward_flops("B/16") * 303e6 * 7 / 1e18  # a backward pass is two forward
    assert exaflops["B/16", "7"] == pytest.approx(expected, abs=0.5)


def test_the_command_prints_what_models_cost(capsys):
    main(["vit_b16", "R50x1", "--num_classes=1000"])
    title, _, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert " ".join(title) == "Models with a head of 1,000 classes, images of 224x224:"
    assert [line[:2] for line in lines] == [["B/16", "86,567,656"], ["R50x1", "25,549,352"]]
    assert float(lines[0][2]) == pytest.approx(2 * 17.58, rel=0.01)
    main(["B/16"])
    title, _, line = capsys.readouterr().out.splitlines()
    assert title == "Models without a head, images of 224x224:"
    assert line.split()[1] == f"{86_567_656 - 769 * 1000:,}"
    with pytest.raises(SystemExit):
        main(["B/17"])
    assert "There is no model variant 'B/17'" in capsys.readouterr().err


def test_flops_of_a_vit_are_those_of_its_equations():
    """The matmuls of equations 1 to 4 and appendix A, for a size of which nothing is square."""
    b, k, d, mlp, patch, rows, columns, classes = 2, 3, 12, 20, 4, 3, 5, 7
    n = rows * columns + 1
    embedding = (n - 1) * patch * patch * 3 * d
    attention = n * d * 3 * d + 2 * k * n * n * (d // k) + n * d * d
    expected = embedding + b * (attention + 2 * n * d * mlp) + d * classes
    found = forward_flops(
        "B/16",
        (rows * patch, columns * patch),
        num_classes=classes,
        width=d,
        depth=b,
        mlp_dim=mlp,
        num_heads=k,
        patch_size=patch,
    )
    assert found == 2 * expected


@pytest.mark.slow
def test_flops_are_the_same_for_all_implementations():
    """One of which can't compute in float32."""
    expected = forward_flops("Ti/16", 32)
    for implementation in IMPLEMENTATIONS:
        assert forward_flops("Ti/16", 32, implementation=implementation) == expected


def test_loras_updates_are_not_counted_for_each_image():
    shared = dict(image_size=32, num_classes=3)
    updated = forward_flops("Ti/16", lora_rank=8, lora_alpha=2.0, **shared)
    assert updated == forward_flops("Ti/16", **shared)


def test_relative_positions_and_axial_blocks_are_counted():
    options = dict(width=12, depth=1, mlp_dim=20, num_heads=3, patch_size=4, pool="gap")
    n, d = 15, 12

    def flops(**more):
        return forward_flops("B/16", (12, 20), **options, **more)

    assert flops(positions="relative") - flops() == 2 * n * n * d
    mlp_and_projections = 2 * (4 * n * d * d + 2 * n * d * 20)
    rows_and_columns = 2 * 2 * d * (3 * 5 * 5 + 5 * 3 * 3)
    embedding = 2 * n * 4 * 4 * 3 * d
    assert flops(axial=True) == embedding + 2 * mlp_and_projections + rows_and_columns


def test_parts_of_later_models_are_counted():
    d, mlp, n = 12, 20, 15
    options = dict(width=d, depth=2, mlp_dim=mlp, num_heads=3, patch_size=4)

    def flops(**more):
        return forward_flops("B/16", (12, 20), **options, **more)

    def blocks(n, layers=2):  # two blocks, of n tokens
        return 2 * 2 * (4 * n * d * d + 2 * n * n * d + layers * n * d * mlp)

    embedding = 2 * n * 4 * 4 * 3 * d
    assert flops(registers=4) == embedding + blocks(n + 5)
    assert flops(class_tokens=2, projection=7) == embedding + blocks(n + 2) + 2 * 2 * d * 7
    assert flops(pool="gap", mlp="swiglu") == embedding + blocks(n, layers=3)
    probe = 2 * (2 * d * d + 2 * n * d * d + 2 * n * d + 2 * d * mlp)
    assert flops(pool="map") == embedding + blocks(n) + probe


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolutions_are_counted_as_by_xla(padding, dilation):
    """Which leaves out what is multiplied by padding."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 1), padding, rhs_dilation=(dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    arrays = np.ones((2, 9, 11, 3), np.float32), np.ones((3, 3, 3, 8), np.float32)
    traced = jax.make_jaxpr(convolve)(*arrays)
    expected = jax.jit(convolve).lower(*arrays).compile().cost_analysis()["flops"]
    assert count_flops(traced.jaxpr) == expected
    taps = 2 * np.prod(traced.out_avals[0].shape) * 3 * 3 * 3
    assert count_flops(traced.jaxpr, padding=True) == taps


def test_loops_count_as_often_as_they_run():
    def function(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]

    jaxpr = jax.make_jaxpr(function)(np.ones((2, 3)), np.ones((3, 3))).jaxpr
    assert count_flops(jaxpr) == 5 * 2 * 2 * 3 * 3


def test_unknown_variants_and_sizes_are_refused():
    with pytest.raises(ValueError, match="closest: B/16"):
        forward_flops("B/17")
    with pytest.raises(ValueError, match="225x225 pixels can't be cut"):
        forward_flops("B/16", 225)
