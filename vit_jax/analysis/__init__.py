"""What a run needs and takes on devices that need not be there."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # a compiled train step
    from vit_jax.analysis.compiling import Program, compile_step

    # devices, and what they can do
    from vit_jax.analysis.hardware import CHIPS, Topology, find_topology, roofline

    # what a compiled program costs
    from vit_jax.analysis.hlo import Collective, Costs, count_costs

    # the plan of a run
    from vit_jax.analysis.plan_table import format_plan
    from vit_jax.analysis.planning import dataset_size, plan

    # what the paper's pre-trainings take
    from vit_jax.analysis.paper import compile_programs, format_paper, trainings

    # the largest batch, and other ways to fit
    from vit_jax.analysis.suggestions import find_largest_batch, suggest_changes
