"""Nodes, GPUs and time limits of the jobs."""


def nodes_of_run(wildcards):
    """Nodes of a training job."""
    return nodes_of(SETTINGS, run_of(wildcards))


def for_several_processes(value):
    """Resource function: a value where a training job has several processes; else the resource is not there.

    With `mpi` the Slurm executor runs the job's command on the first node and leaves the processes to its srun.
    """
    return lambda wildcards: value if processes_of(SETTINGS, run_of(wildcards)) > 1 else None


def tasks_of_job(wildcards):
    """Tasks of a job with one process on each of several nodes; the executor takes tasks_per_node only above 1."""
    return nodes_of_run(wildcards) if SETTINGS.processes == 1 and nodes_of_run(wildcards) > 1 else None


def gpus_of_run(wildcards):
    """GPUs of a training job on all its nodes."""
    return GPUS * processes_of(SETTINGS, run_of(wildcards))


def time_limit(seconds, attempt, **smallest):
    """Minutes that a job on the GPU partition may take, by what it should take; no more than machine.max_job_hours."""
    return limit_minutes(seconds, attempt, SETTINGS.max_job_hours, **smallest)


def annotate_runtime(wildcards, attempt):
    """Minutes that a shard job may take."""
    return time_limit(plan_jobs.shard_seconds(study_of(wildcards), label_job_of(wildcards), wildcards.split), attempt)


def adapt_runtime(wildcards, attempt):
    """Minutes that an adaptation or an annotator's evaluation may take: one forward pass over all photographs."""
    return time_limit(plan_jobs.adapt_seconds(study_of(wildcards), annotator_job_of(wildcards).annotator), attempt)


def fidelity_runtime(wildcards, attempt):
    """Minutes that the comparison of labels with their annotator may take."""
    return time_limit(plan_jobs.fidelity_seconds(study_of(wildcards), label_job_of(wildcards).annotator), attempt)


def evaluate_runtime(wildcards, attempt):
    """Minutes that an evaluation of a run may take; an hour at least, for decoding may be what takes long."""
    return time_limit(
        plan_jobs.evaluation_seconds(study_of(wildcards), run_of(wildcards)), attempt, smallest=EVALUATION_MINUTES
    )


def segmentation_runtime(wildcards, attempt):
    """Minutes that the evaluation of a segmenter may take; an hour at least, as for a run."""
    seconds = plan_jobs.segmentation_evaluation_seconds(study_of(wildcards), run_of(wildcards))
    return time_limit(seconds, attempt, smallest=EVALUATION_MINUTES)


def published_runtime(wildcards, attempt):
    """Minutes that the evaluation of a published checkpoint may take; an hour at least, as for a run."""
    return time_limit(
        plan_jobs.published_seconds(STUDY, published_job_of(wildcards)), attempt, smallest=EVALUATION_MINUTES
    )


def train_runtime(wildcards, attempt):
    """Minutes that a run may take; a run that is cut off continues from its checkpoint at the next attempt."""
    run = run_of(wildcards)
    return time_limit(plan_jobs.run_seconds(study_of(wildcards), run, run.leg_end(1, legs_of_job(wildcards))), attempt)
