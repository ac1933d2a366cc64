"""What a model looks at: arrays, figures of them, a report, and a page in the browser."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # attention: of every layer and head, and through all layers
    from vit_jax.interpret.attention import (
        attention_distances,
        attention_maps,
        output_attention,
        rollout,
        rollout_and_heads,
    )

    # where a ResNet sees a class
    from vit_jax.interpret.class_maps import grad_cam

    # what was learned: the first layer's filters, and position embeddings
    from vit_jax.interpret.filters import Filters, first_layer_filters, position_similarity

    # a page in the browser
    from vit_jax.interpret.page import build_page
    from vit_jax.interpret.serving import private_uploads, serve

    # a report with pictures
    from vit_jax.interpret.report import Report, write_report
