"""What commands share: arguments, settings of the process, printed errors, and flags."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # arguments that several commands take
    from vit_jax.cli.arguments import (
        add_checkpoint,
        add_images,
        find_images,
        image_size,
        layer_numbers,
    )

    # settings of the process, before JAX starts its devices
    from vit_jax.cli.environment import (
        join_processes,
        keep_freed_memory,
        keep_programs,
        prefer_cublas,
        without_tpu,
    )

    # what is printed of errors and signals
    from vit_jax.cli.errors import (
        exit_at_signals,
        exit_if_unreadable,
        log_errors_once,
        stop_at_closed_pipe,
    )

    from vit_jax.cli.interrupts import end_quietly_at_ctrl_c

    # flags of commands that read a configuration
    from vit_jax.cli.flags import parse_flags
