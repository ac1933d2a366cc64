"""What commands share: arguments, settings of the process, streams, printed errors, and flags."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # arguments that several commands take
    from vit_jax.cli.arguments import (
        add_checkpoint,
        add_images,
        find_images,
        image_size,
        layer_numbers,
        names_on_stdin,
    )

    # settings of the process, before JAX starts its devices
    from vit_jax.cli.environment import (
        join_processes,
        keep_freed_memory,
        keep_programs,
        prefer_cublas,
        start_devices,
        start_logging,
        without_tpu,
    )

    # what is printed of errors and signals
    from vit_jax.cli.errors import (
        describe_error,
        describe_out_of_memory,
        exit_at_signals,
        exit_if_unreadable,
        log_errors_once,
        stop_at_closed_pipe,
    )

    # Ctrl-C, streams and memory, before the imports of a command
    from vit_jax.cli.interrupts import end_quietly_at_ctrl_c
    from vit_jax.cli.memory import install_memory_hooks, require_address_space
    from vit_jax.cli.streams import prepare_streams

    # one of several processes is lost
    from vit_jax.cli.lost_process import describe_lost_connection, filter_stderr

    # flags of commands that read a configuration
    from vit_jax.cli.flags import parse_flags
