"""The configuration of a run: its keys, their defaults and their types."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # every key with its default, and what it means
    from vit_jax.config.defaults import default
    from vit_jax.config.comments import describe_keys

    # names and types of keys, and what several folders derive from their values
    from vit_jax.config.keys import (
        all_keys,
        image_shape,
        is_folder,
        model_attributes,
        no_such_key,
        run_config,
        type_problem,
        what_fits,
    )

    # hyperparameters for small data
    from vit_jax.config.recipes import fine_tune, train_from_scratch
