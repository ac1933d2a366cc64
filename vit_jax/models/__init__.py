"""The models of the paper as Flax Linen modules; `vit.py` is the place to start reading."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # the attributes that a model can have, and what depends on each
    from vit_jax.models.attributes import ATTRIBUTES, DTYPES

    # the pooled representation, and the tokens after single blocks
    from vit_jax.models.features import Features, token_features

    # what a model costs
    from vit_jax.models.flops import forward_flops, table_6, training_exaflops

    # parameter trees
    from vit_jax.models.params import check_same, count_parameters, differences, parameter_shapes

    # images as a model reads them
    from vit_jax.models.patches import to_float, to_patches

    # position embeddings for other grids
    from vit_jax.models.positions import RESIZES, resize_positions

    # the baselines
    from vit_jax.models.resnet import ResNet

    # every model by its name
    from vit_jax.models.variants import VARIANTS, build, canonical, plain

    # the Vision Transformer
    from vit_jax.models.vit import VisionTransformer
