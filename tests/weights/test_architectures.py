"""What names of timm's architectures say, against timm's own models."""

import functools
import inspect

import pytest
from peers import torch  # skips the file if PyTorch is not installed

from vit_jax.weights import architectures

timm = pytest.importorskip("timm")
registry = pytest.importorskip("timm.models._registry")

OURS = ("vision_transformer", "deit", "vision_transformer_hybrid")
GELUS = {("GELU", "none"): "exact", ("GELUTanh", ""): "tanh", ("QuickGELU", ""): "quick"}
POOLS = {"token": "token", "avg": "gap", "map": "map"}


def module_of(name):
    return registry._model_to_module[name.partition(".")[0]]


def is_known(name):
    return module_of(name) in OURS or (module_of(name) == "resnetv2" and "_bit" in name)


@functools.cache
def models():
    """All models of the modules, two blocks deep, without memory for their arrays."""
    names = [name for name in timm.list_models() if module_of(name) in OURS]
    found = {}
    with torch.device("meta"):
        for name in names:
            if "_resnet" not in name and "_mci_" not in name:  # these read numbers when made
                found[name] = timm.create_model(name, depth=2)
    return found


def facts_of(model):
    """What `attributes_of` should say, from the modules of a model."""
    block = model.blocks[0]
    act = block.mlp.act
    facts = {
        "width": model.embed_dim,
        "num_heads": block.attn.num_heads,
        "norm_epsilon": block.norm1.eps,
        "pool": POOLS[model.global_pool],
    }
    if type(act).__name__ != "SiLU":  # of a gated MLP, which the arrays show
        facts["gelu"] = GELUS[type(act).__name__, getattr(act, "approximate", "")]
    return facts


def test_names_say_what_timm_builds():
    refused = {name for name, _ in models().items() if architectures.refusal_of(name)}
    for name in models().keys() - refused:
        said = architectures.attributes_of(f"timm/{name}.any_tag")
        assert facts_of(models()[name]).items() <= said.items(), name
        assert ("kernel_epsilon" in said) == (module_of(name) == "vision_transformer_hybrid")
    assert len(models()) - len(refused) >= 173
    blocks = {type(models()[name].blocks[0]).__name__ for name in refused}
    assert blocks == {  # all that timm has, but for a Block with norms inside
        "Block",
        "DiffParallelScalingBlock",
        "ParallelScalingBlock",
        "ParallelThingsBlock",
        "ResPostBlock",
    }
    for name in models().keys() - refused:
        assert type(models()[name].blocks[0]).__name__ == "Block", name


def test_arrays_show_what_names_refuse_but_for_the_place_of_norms():
    for name, model in models().items():
        by_arrays = architectures.refusal_of_arrays(model.state_dict())
        by_name = architectures.refusal_of(name)
        if name == "test_vit3" or "_rpn_" in name:
            assert by_name and not by_arrays
        else:
            assert by_name.removeprefix(f"{name} has") == by_arrays.removeprefix("it has"), name


def test_other_architectures_are_unknown():
    for name in [*timm.list_models(), *registry._deprecated_models]:
        assert (architectures.attributes_of(name) is not None) == is_known(name), name
    for name in ("", "model", "vit_base_patch16", "ViT-B/16", "vit_base_patch16_relpos_224"):
        assert architectures.attributes_of(name) is None
        assert architectures.refusal_of(name) == ""


def test_names_tell_rotary_positions_which_no_array_shows():
    for name in ("vit_pe_core_base_patch16_224.fb", "vit_base_patch16_rope_224", "eva02_tiny"):
        assert "rotary positions" in architectures.refusal_of(name)
        assert architectures.attributes_of(name) is None


def test_arguments_of_timms_models():
    found = architectures.from_model_args(
        {"num_heads": 4, "global_pool": "avg", "act_layer": "quick_gelu", "embed_dim": 64}
    )
    assert found == {"num_heads": 4, "pool": "gap", "gelu": "quick", "width": 64}
    model = timm.create_model("vit_base_patch16_clip_224", depth=1, norm_layer="layernorm")
    assert architectures.from_model_args({"norm_layer": "layernorm", "qk_norm": False}) == {
        "norm_epsilon": model.blocks[0].norm1.eps
    }


@pytest.mark.parametrize(
    "argument",
    [
        {"global_pool": "avgmax"},
        {"global_pool": ""},  # all tokens
        {"global_pool": ["avg"]},
        {"act_layer": "relu"},
        {"qk_norm": True},
        {"attn_layer": "diff"},
        {"pool_include_prefix": True},
        {"num_heads": "4"},
        {"of_a_later_timm": 3},
    ],
)
def test_arguments_that_change_the_mathematics_are_refused_by_name(argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"model_args has {name}="):
        architectures.from_model_args(argument)


def test_every_argument_of_timms_models_is_shown_or_refused():
    parameters = inspect.signature(timm.models.VisionTransformer).parameters
    layers = {"embed_layer", "embed_norm_layer", "block_fn", "mlp_layer", "attn_layer", "act_layer"}
    others = {"qk_norm", "scale_attn_norm", "scale_mlp_norm", "pool_include_prefix", "norm_layer"}
    others |= {"dynamic_img_pad"}
    own_types = {"embed_dim", "num_heads", "depth", "patch_size", "reg_tokens", "global_pool"}
    own_types |= {"pos_embed", "pre_norm", "final_norm"}
    for name in parameters.keys() - {"device", "dtype"} - own_types:
        try:
            architectures.from_model_args({name: "unknown"})
            shown = True
        except ValueError:
            shown = False
        assert shown != (name in layers | others), name
