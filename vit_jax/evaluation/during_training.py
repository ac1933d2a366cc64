"""What a training run measures at intervals: the list of its evaluators."""

from __future__ import annotations

from ml_collections import ConfigDict

from vit_jax.data.inputs import Inputs
from vit_jax.evaluation.evaluator import Evaluator
from vit_jax.evaluation.fewshot import few_shot_evaluator, open_few_shot
from vit_jax.evaluation.neighbours import Neighbours, neighbours_evaluator
from vit_jax.evaluation.split_metrics import on_test_split, polyak_on_test_split
from vit_jax.training.parallel import Parallel
from vit_jax.training.setup import Setup


def evaluators_of_run(
    config: ConfigDict, setup: Setup, program: Parallel, inputs: Inputs
) -> list[Evaluator]:
    """Returns what is measured at intervals, in the order of the columns of metrics.csv.

    Args:
      config: the run's.
      setup: its objective is measured.
      program: as for `measure_split` and `few_shot_evaluator`.
      inputs: the data of the run.
    """
    test = (setup.objective, program, inputs.test_batches, config.eval_every)
    evaluators = [on_test_split(*test), polyak_on_test_split(*test)]
    if config.fewshot.every:
        few_shot = open_few_shot(config, inputs.make_eval_batches, inputs.dataset)
        evaluators.append(few_shot_evaluator(few_shot, program, config.fewshot.every))
    if config.fewshot.every and config.fewshot.neighbours:
        neighbours = Neighbours(config, inputs.make_eval_batches, inputs.dataset)
        evaluators.append(neighbours_evaluator(neighbours, program, config.fewshot.every))
    return evaluators
