"""Input functions and arguments of the jobs: what a job waits for, and the folders that its command is told.

They run once for every job that is planned, and leave the job's spec beside its outputs on the way. What expensive jobs wait for
is `ancient`: Snakemake compares times whatever its rerun triggers are, and a touched or copied marker must not start a week of
training. What is current, the digest in the path says.
"""


def manifest_after_spec(spec):
    """Input function: the manifest's marker, after writing a spec (wildcards -> (path, document))."""

    return manifest_after_specs(lambda wildcards: [spec(wildcards)])


def manifest_after_specs(specs):
    """The same for several specs (wildcards -> list of (path, document))."""

    def manifest(wildcards):
        for document in specs(wildcards):
            write_document(*document)
        return ancient(study_of(wildcards).data.marker)

    return manifest


def adapted_annotator_of(wildcards):
    """Marker of the adapted annotator that makes a label folder; none for one that comes with its weights."""
    job = label_job_of(wildcards).adapted
    return [ancient(job.marker)] if job else []


def adapted_marker(wildcards):
    """Marker of an annotator's adaptation; none for one that comes with its weights."""
    job = annotator_job_of(wildcards)
    return [ancient(job.marker)] if job.adapted else []


def run_to_adapt(wildcards):
    """Marker of the fine-tuning that an adapted annotator is made of; none for a probe."""
    run = annotator_job_of(wildcards).run
    return [ancient(run.done(0))] if run else []


def run_argument_of_annotator(wildcards):
    """Folder of that run, as a command line argument."""
    run = annotator_job_of(wildcards).run
    return f"--run {shlex.quote(str(Path(run.done(0)).parent))}" if run else ""


def annotator_argument(wildcards):
    """Folder of a label folder's adapted annotator, as a command line argument."""
    job = label_job_of(wildcards).adapted
    return f"--annotator {shlex.quote(job.folder)}" if job else ""


def manifest_of_shard(wildcards):
    """Input function: the manifest's marker, after writing the label spec; newer than a shard that it makes stale."""
    job = label_job_of(wildcards)
    write_document(*job.document)
    stale = job.markers_of(wildcards.split)[int(wildcards.shard)] in STALE
    marker = study_of(wildcards).data.marker
    return marker if stale else ancient(marker)


def data_root_after_spec(wildcards):
    """Input function of the first job: nothing to wait for; a data root that is missing here is said before any job."""
    return root_after_spec(study_of(wildcards).data, "data_root", "the data set")


def segmentation_root_after_spec(wildcards):
    """The same for the scenes of segmentation."""
    job = study_of(wildcards).scene_job(wildcards.scenes)
    return root_after_spec(job, "segmentation_root", "the scenes")


def root_after_spec(job, key, held):
    """Writes a manifest's spec and looks for the folder that it lists; on a cluster only the compute nodes need that."""
    write_document(*job.document)
    if workflow.exec_mode == ExecMode.DEFAULT and workflow.local_exec and not workflow.dryrun:
        root = getattr(STUDY.config, key)
        if not Path(job.marker).exists() and not Path(root).is_dir():
            stop(
                f"configuration key {key}: {root!r}: no such folder on this machine. Set it to the folder that holds "
                f"{held}, in an overlay or with --config {key}=/path."
            )
    return []


def scenes_after_spec(wildcards):
    """Input function: the scene manifest's marker, after writing the spec of a training for segmentation."""
    run = run_of(wildcards)
    write_document(*run.document)
    return ancient(run.scenes.marker)


def scenes_after_evaluation(wildcards):
    """The same after writing the spec of its evaluation."""
    write_document(*evaluation_of(wildcards))
    return ancient(run_of(wildcards).scenes.marker)


def scene_folder(wildcards):
    """Folder of the scene manifest of a training for segmentation."""
    return run_of(wildcards).scenes.folder


def labels_of_run(wildcards):
    """Markers of all shards that a run learns from; none for hard labels."""
    job = run_of(wildcards).labels
    return [ancient(marker) for marker in job.markers] if job else []


def labels_to_measure(wildcards):
    """Markers of all shards of a label folder."""
    return [ancient(marker) for marker in label_job_of(wildcards).markers]


def compared_labels(wildcards):
    """The label job that an evaluation compares tokens with; None without."""
    _, evaluation = evaluation_of(wildcards)
    return study_of(wildcards).reference if "agreement" in evaluation else None


def labels_to_compare(wildcards):
    """Markers of the validation shards that an evaluation compares tokens with."""
    job = compared_labels(wildcards)
    return [ancient(marker) for marker in job.markers_of("val")] if job else []


def compare_argument(wildcards):
    """Their folder, as a command line argument."""
    job = compared_labels(wildcards)
    return f"--labels {shlex.quote(job.folder)}" if job else ""


def results_of_table(wildcards):
    """Evaluations of all rows and seeds of an experiment, and the plan that names them.

    The plan's digest is in its name, so that a table whose rows changed is made again even where Snakemake's own records
    are gone. A dry run writes no plan and lists it only where it exists.
    """
    table = STUDY.tables[wildcards.experiment]
    return table.inputs + plan_of_table(table)


def results_of_transfer(wildcards):
    """The same for an experiment of segmentation."""
    table = STUDY.segmentation_tables[wildcards.transfer]
    return table.inputs + plan_of_table(table)


def trainings_of_table(wildcards):
    """Markers of all runs and seeds of an experiment, and the plan that names them."""
    table = STUDY.tables[wildcards.experiment]
    return table.trainings + plan_of_table(table)


def trainings_of_transfer(wildcards):
    """The same for an experiment of segmentation."""
    table = STUDY.segmentation_tables[wildcards.transfer]
    return [run.done(seed) for run, seed in table.trainings] + plan_of_table(table)


def results_of_published(wildcards):
    """Evaluations of the selected published checkpoints, and the plan that names them."""
    return STUDY.published.inputs + plan_of_table(STUDY.published)


def published_arguments(wildcards):
    """Name and source of a published checkpoint, as command line arguments."""
    job = published_job_of(wildcards)
    name = job.name.rsplit("-", 1)[0]
    return f"--name {shlex.quote(name)} --source {shlex.quote(job.entry.source)}"


def results_of_accuracy(wildcards):
    """Evaluations of `main` and its plan: all of them, or those that exist when the figure alone is asked for."""
    table = STUDY.tables["main"]
    alone = set(workflow.dag_settings.targets) == {ACCURACY}
    return [path for path in table.inputs if not alone or Path(path).exists()] + plan_of_table(table)


def plan_of_table(table):
    """The plan's path, after writing it."""
    return written_plan((table.plan, table.as_json()))


def written_plan(plan):
    """A plan's path, after writing it; nothing on a dry run of a plan that was never written."""
    write_document(*plan)
    return [plan[0]] if Path(plan[0]).exists() else []


def plan_of_table_so_far(wildcards):
    """The plan of a table so far, which lists the evaluations that exist; none of them is an input (core/so_far.py)."""
    return so_far_plans()[wildcards.transfer if "transfer" in wildcards.keys() else wildcards.experiment]


def plans_of_tables_so_far(wildcards):
    """The same for every table of the catalogue."""
    return [path for paths in so_far_plans().values() for path in paths]


@functools.cache
def so_far_plans():
    """Table -> its plan's path, after writing all of them."""
    tables = [*STUDY.tables.values(), *STUDY.offered_segmentations]
    return {table.name: written_plan(plan_so_far(table)) for table in tables}


def comparison_plan():
    """Path and content of Table 12's plan; a configuration without such a row ends Snakemake with one line."""
    try:
        return plan_comparison(STUDY)
    except TokenLabelError as error:
        stop(error)


def plan_of_comparison(wildcards):
    """The plan of Table 12."""
    return written_plan(comparison_plan())


def start_of_run(wildcards):
    """Marker of the run that a fine-tuning continues; none for a training."""
    start = run_of(wildcards).start
    return [ancient(start.done(wildcards.seed))] if start else []


def leg_before(wildcards):
    """Marker of the leg that a leg continues; none for a first leg and for a run in one piece.

    Snakemake runs a job again whose inputs are others than its records say. So a finished run lists the leg that it was
    finished from, whatever `machine.leg_epochs` and `machine.max_job_hours` say now.
    """
    run, seed = run_of(wildcards), wildcards.seed
    if "leg" in wildcards.keys():
        leg, legs = int(wildcards.leg), int(wildcards.legs)
    elif Path(run.done(seed)).exists():
        return [ancient(marker) for marker in last_leg_before(run, seed)]
    else:
        leg = legs = plan_jobs.legs_of(study_of(wildcards), run)
    return [ancient(run.leg_done(seed, leg - 1, legs))] if leg > 1 else []


def last_leg_before(run, seed):
    """Marker of the last leg but one of a finished run; none where it ran in one piece."""
    legs = legs_of_finished(Path(run.done(seed)))
    return [run.leg_done(seed, legs - 1, legs)] if legs > 1 else []


def seed_folder(wildcards):
    """Folder of one seed of a run."""
    return str(Path(run_of(wildcards).done(wildcards.seed)).parent)


def run_arguments(wildcards):
    """Folders that a run reads, and what its config.json is to say of evaluation, as command line arguments."""
    run = run_of(wildcards)
    arguments = []
    if "segmentation" not in wildcards.keys():
        arguments += ["--eval-crop", str(study_of(wildcards).model_of(run).eval_crop)]
        if run.labels:
            arguments += ["--labels", run.labels.folder]
    if run.start:
        arguments += ["--start", str(Path(run.start.done(wildcards.seed)).parent)]
    legs = legs_of_job(wildcards)
    if "leg" in wildcards.keys():
        arguments += ["--until-epoch", str(run.leg_end(int(wildcards.leg), legs))]
    if legs > 1:
        arguments += ["--legs", str(legs)]
    if IN_SLURM_JOB:
        arguments += ["--requeue"]
    return " ".join(map(shlex.quote, arguments))


def legs_of_job(wildcards):
    """Of how many legs a leg is one, or a run's last job the last."""
    return (
        int(wildcards.legs) if "leg" in wildcards.keys() else plan_jobs.legs_of(study_of(wildcards), run_of(wildcards))
    )
