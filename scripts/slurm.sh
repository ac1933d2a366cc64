#!/usr/bin/env bash
# A run on a Slurm cluster: sbatch [OPTION …] scripts/slurm.sh --config=FILE --workdir=FOLDER …
#
# The arguments are those of `python -m vit_jax.main`. Options before the script replace the lines
# below. JAX wants one process a GPU, so these two numbers are the same:
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 scripts/slurm.sh --config=… --workdir=…
#
# Two minutes before the time is up, or before the job gives way to another one, its processes get
# SIGTERM. They finish the step and save it, and the job is queued again. It goes on from there.
#
#SBATCH --job-name=vit_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

fail() {
  echo "$1" >&2
  exit 2
}

python=${PYTHON:-.venv/bin/python} # in the folder from which sbatch was called
tasks=${SLURM_NTASKS_PER_NODE:-1}
[[ -n ${SLURM_JOB_ID:-} && $# -gt 0 ]] ||
  fail "sbatch [OPTION …] scripts/slurm.sh --config=FILE --workdir=FOLDER …"
command -v "$python" > /dev/null ||
  fail "There is no $python in $PWD: PYTHON=FILE names a Python that has vit_jax."
[[ ${SLURM_GPUS_ON_NODE:-$tasks} == "$tasks" ]] ||
  fail "A node has $SLURM_GPUS_ON_NODE GPUs and $tasks processes; one process takes one GPU: \
give --gpus-per-node and --ntasks-per-node the same number."

status=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "$python" -m vit_jax.main --distributed "$@" || status=$?
# 143: SIGTERM stopped the run, and its step is saved. A job that `scancel` ends is not running.
if [[ $status == 143 && $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
  echo "The job is queued again, and goes on from what is saved." >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
