"""What is trained, and how: objectives, optimizers, the step, and the devices it runs on."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # objectives; `classification` and `masked_patches` are modules that hold one each
    from vit_jax.training.masked_patches import TARGETS
    from vit_jax.training.objective import (
        LOSSES,
        Objective,
        sigmoid_cross_entropy,
        softmax_cross_entropy,
    )

    # optimizers and schedules
    from vit_jax.training.optim import (
        OPTIMIZERS,
        SCHEDULES,
        learning_rate_schedule,
        optimizer,
        polyak_average,
        weight_decay_mask,
    )

    # which parameters are trained, and at which rate each
    from vit_jax.training.trained import join_params, rate_factors, split_params

    # how a step runs on all devices
    from vit_jax.training.parallel import STRATEGIES, Parallel, partition, make_program

    # from a configuration to all of the above
    from vit_jax.training.setup import OBJECTIVES, Setup, set_up, run_length

    # the memory that a run takes, and what it changes to fit into that of its devices
    from vit_jax.training.memory import Needs, estimate_needs, evaluation_needs
    from vit_jax.training.device_memory import device_memory
    from vit_jax.training.fit_memory import fit_evaluation, fit_training

    # one step
    from vit_jax.training.step import TrainState, initial_state, make_update
