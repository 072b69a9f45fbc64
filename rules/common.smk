"""The plan, made once per parse, and every function that rules use. Imports tokenlabel.core only, never torch."""

import functools
import gc
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake_interface_executor_plugins.settings import DeploymentMethod, ExecMode

from tokenlabel.core import plan_jobs
from tokenlabel.core.cost import EVALUATION_MINUTES, MANIFEST_MINUTES, limit_minutes, manifest_mem_mb
from tokenlabel.core.errors import TokenLabelError
from tokenlabel.core.files import read_json, write_json_if_changed
from tokenlabel.core.first_light import (
    finished_first_light,
    light_results,
    light_segmentation,
    light_table,
    plan_first_light,
    summary_document,
)
from tokenlabel.core.identity import digest_of
from tokenlabel.core.log import git_commit
from tokenlabel.core.markers import forget_begun, legs_of_finished
from tokenlabel.core.overlays import refuse_repeated_keys
from tokenlabel.core.placement import nodes_of, processes_of
from tokenlabel.core.plan import plan_study as price_study
from tokenlabel.core.report_contents import (
    ABOUT_FOLDER,
    ABOUT_PAGES,
    as_rst,
    capped_words,
    overlays_place,
    report_results,
    whole,
    whole_evaluations,
)
from tokenlabel.core.so_far import plan_comparison, plan_so_far
from tokenlabel.core.staleness import stale_shards
from tokenlabel.core.study import Study

# a graph of thousands of jobs is millions of objects that stay: searching them for garbage again and again is an eighth of the planning
gc.disable()


onstart:
    gc.enable()  # Snakemake may run for days now
    gc.freeze()  # and need not look at the graph any more


def plan_study():
    """Validates the configuration; a mistake ends Snakemake with one line and exit code 1."""
    try:
        if workflow.exec_mode == ExecMode.DEFAULT:
            for path in workflow.configfiles:
                refuse_repeated_keys(Path(path))
        return Study.plan(config)
    except TokenLabelError as error:
        stop(error)


def stop(error):
    """Ends Snakemake with one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)  # sys.exit would print Snakemake's traceback around the one line that matters


def write_document(path, document):
    """Writes a job's spec, and machine.json anew, for the jobs to read; nothing on a dry run or inside a job.

    Called from input functions only: while the Snakefile is parsed, Snakemake does not know yet that it is a dry run.
    """
    if workflow.exec_mode != ExecMode.DEFAULT or workflow.dryrun or workflow.touch:
        return
    documents = {path: document}
    if MACHINE not in WRITTEN:  # moving the data reruns nothing, yet the next job sees it
        documents |= {RESOLVED: config, MACHINE: STUDY.machine()}
        forget_begun(Path(".snakemake/incomplete"), Path())  # before Snakemake looks there, which is after this
    try:
        for place in documents.keys() - WRITTEN:  # 64 shards share a spec: one look at the file system is enough
            write_json_if_changed(Path(place), documents[place])
            workflow.iocache.exists_local[place] = True  # Snakemake remembers what lay in a folder when it first looked
            WRITTEN.add(place)
    except TokenLabelError as error:
        stop(error)


def python_command():
    """The interpreter of the jobs: this one, unless conda environments or a container bring their own.

    `.venv/bin/snakemake` without .venv/bin on PATH would otherwise run the jobs with another Python.
    """
    if workflow.deployment_settings.deployment_method & {DeploymentMethod.CONDA, DeploymentMethod.APPTAINER}:
        return "python"
    return shlex.quote(sys.executable)


def image():
    """The container of the jobs, with `--sdm apptainer` only."""
    used = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
    return f"{workflow.basedir}/envs/tokenlabel.sif" if used else None


def retries(count):
    """How often a failed job is tried again: none inside a submitted job.

    The Snakemake that runs there reads the same, and would try again with the memory and the time of the first attempt.
    """
    return count if workflow.exec_mode == ExecMode.DEFAULT else 0


def training_command(wildcards):
    """How a training job starts: one process, or as many as machine.processes says, on as many nodes as it is to have."""
    nodes, processes = nodes_of_run(wildcards), SETTINGS.processes
    stage = "segment" if "segmentation" in wildcards.keys() else "train"
    if nodes * processes == 1:
        return f"{PYTHON} -m tokenlabel.{stage}"
    launch = f"--processes {processes}"
    if nodes > 1 or IN_SLURM_JOB:
        launch = f"--nodes {nodes} {launch} --srun --threads {SETTINGS.threads}"
    return f"{PYTHON} -m tokenlabel.engine.launch {launch} tokenlabel.{stage}"


def find_stale_shards():
    """Markers of shards that are of other photographs than the manifest's, since `tokenlabel refresh`.

    They stay until the new ones replace them: an ancient input that is missing would train finished runs again.
    """
    manifest = Path(STUDY.data.marker)
    if workflow.exec_mode != ExecMode.DEFAULT or not manifest.exists():
        return set()
    try:
        said = read_json(manifest)
        digests = {split: found["shard_digests"] for split, found in said["splits"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged: the jobs that read it say so
        return set()
    stale = [marker for job in STUDY.labels.values() for marker in stale_shards(Path(job.folder), digests)]
    newest = max((marker.stat().st_mtime for marker in stale), default=0.0)
    if newest >= manifest.stat().st_mtime:
        # copied, or restored by Snakemake after a failed job; it plans a job again where an input is newer and differs.
        # Newer than the marker by the marker's own time: this machine's clock may be behind that of the node that wrote it.
        write_json_if_changed(manifest, said | {"replanned": said.get("replanned", 0) + 1})
        os.utime(manifest, (newest + 1, newest + 1))
    return set(map(str, stale))


if not os.access(Path.cwd(), os.W_OK):
    stop(
        f"{Path.cwd()}: this folder cannot be written. Run snakemake where results may lie, or give --directory FOLDER."
    )
WRITTEN = set()  # documents that this process has written or found up to date
MACHINE = "results/machine.json"
PLAN = "results/tables/plan.json"  # the plan as data
ACCURACY = "results/figures/accuracy_parameters.png"
LIGHT_SUMMARY = "results/tables/first_light.json"  # what the first light's summary reads
WITHOUT_RUNS = {  # targets that need no run
    "results/plan.csv",
    "results/plan.md",
    "results/comparison_cait.csv",
    "results/so_far/index.csv",
}
RESOLVED = "results/study.json"  # the merged configuration, for the report and for whoever asks later
STUDY = plan_study()
STALE = find_stale_shards()
PYTHON = python_command()
# for the jobs: the commit for their logs, and where envs/*.post-deploy.sh installs the package from
os.environ.update(TOKENLABEL_COMMIT=git_commit(), TOKENLABEL_SOURCE=str(workflow.basedir))
SETTINGS = STUDY.config.machine
MANIFEST_MEM_MB = manifest_mem_mb(STUDY.config.dataset.train_images)
SCENE_MANIFEST_MEM_MB = manifest_mem_mb(STUDY.config.segmentation.dataset.train_images)
RESULTS = {result.name: result for result in report_results(STUDY)}  # what the report may show
CONTENTS_DOCUMENT = "results/tables/report.json"
ABOUT = f"Commit {git_commit()}, configuration {digest_of(config)}."  # for captions
GPUS = 0 if SETTINGS.device == "cpu" else 1  # of a job with one process
IN_SLURM_JOB = workflow.exec_mode == ExecMode.REMOTE and "SLURM_JOB_ID" in os.environ


# made from envs/apptainer.def; Snakemake refuses a path with a space even where nothing uses it
container: image()


wildcard_constraints:
    data=r"[A-Za-z0-9_]+-[0-9a-f]{8}",
    labels=r"[A-Za-z0-9_]+-[0-9a-f]{8}",
    annotator=r"[A-Za-z0-9_]+-[0-9a-f]{8}",
    published=r"[A-Za-z0-9_]+-[0-9a-f]{8}",
    run=r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*-[0-9a-f]{8}",
    segmentation=r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*-[0-9a-f]{8}",
    scenes=r"[A-Za-z0-9_]+-[0-9a-f]{8}",
    seed=r"\d+",
    split=r"train|val",
    shard=r"\d{5}",
    total=r"\d{5}",
    evaluation=r"[0-9a-f]{8}",
    fidelity=r"[0-9a-f]{8}",
    leg=r"\d\d+",
    legs=r"\d\d+",
    experiment="|".join(STUDY.tables),
    transfer="|".join(STUDY.segmentation_tables) or r"(?!)",  # a study may have none; experiments of segmentation


PLANNED_KINDS = {  # wildcard of a path -> where a study holds what it names
    "run": "runs",
    "labels": "labels",
    "annotator": "annotators",
    "segmentation": "segmentations",
    "scenes": "scenes",
}


@functools.cache
def first_light():
    """The study of `snakemake first_light`; planned when asked for, also by its jobs on compute nodes."""
    try:
        return plan_first_light(config, STUDY)
    except TokenLabelError as error:
        stop(error)


def study_of(wildcards):
    """The study that a job belongs to: the configuration's, or its first light, which has what the former has not."""
    for wildcard, kind in PLANNED_KINDS.items():
        if wildcard in wildcards.keys() and wildcards[wildcard] not in getattr(STUDY, kind):
            return first_light() if wildcards[wildcard] in getattr(first_light(), kind) else STUDY
    if "data" in wildcards.keys() and wildcards.data != STUDY.data.name:
        return first_light()
    return STUDY


def manifest_folder(wildcards):
    """Folder of the manifest."""
    return study_of(wildcards).data.folder


def run_of(wildcards):
    """The planned run of a path: a classifier's, or one for segmentation."""
    try:
        if "segmentation" in wildcards.keys():
            return study_of(wildcards).segmentation(wildcards.segmentation)
        return study_of(wildcards).run(wildcards.run)
    except TokenLabelError as error:
        raise WorkflowError(str(error))


def label_job_of(wildcards):
    """The planned label job of a path."""
    try:
        return study_of(wildcards).label_job(wildcards.labels)
    except TokenLabelError as error:
        raise WorkflowError(str(error))


def annotator_job_of(wildcards):
    """The planned annotator of a path."""
    try:
        return study_of(wildcards).annotator_job(wildcards.annotator)
    except TokenLabelError as error:
        raise WorkflowError(str(error))


def evaluation_of(wildcards):
    """Path and content of an evaluation's spec."""
    return study_of(wildcards).evaluation_document(wildcards.evaluation)


def published_job_of(wildcards):
    """The planned evaluation of a published checkpoint."""
    try:
        return STUDY.published_job(wildcards.published)
    except TokenLabelError as error:
        raise WorkflowError(str(error))


# Input functions run once for every job that is planned; they leave the job's spec beside its outputs on the way.
# What expensive jobs wait for is `ancient`: Snakemake compares times whatever its rerun triggers are, and a touched or
# copied marker must not start a week of training. What is current, the digest in the path says.


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


def table_of_first_light(wildcards):
    """Evaluations of the first light, and the plan that names them."""
    table = light_table(first_light())
    return table.inputs + plan_of_table(table)


def trainings_of_first_light(wildcards):
    """Markers of the first light's runs, and the plan that names them."""
    table = light_table(first_light())
    return table.trainings + plan_of_table(table)


def segmentation_of_first_light(wildcards):
    """Evaluation of the first light's segmenter, and the plan that names it."""
    table = light_segmentation(first_light())
    return table.inputs + plan_of_table(table)


def shards_of_first_light(wildcards):
    """Markers of the first light's shards."""
    return [ancient(marker) for job in first_light().selected_labels for marker in job.markers]


def fidelity_of_first_light(wildcards):
    """Comparisons of the first light's labels with their annotators."""
    return [first_light().fidelity_of(job) for job in first_light().selected_labels]


def plan_of_light_summary(wildcards):
    """What the summary reads, after writing it; rules without a GPU are named with their benchmark files here."""
    light, tables = first_light(), len(STUDY.selected_tables)
    local = {}
    if light_table(light):
        local["make_table"] = ("benchmarks/first_light/table.tsv", tables)
        local["draw_curves"] = ("benchmarks/first_light/curves.tsv", tables)
    local |= {
        "make_plan": ("benchmarks/plan.tsv", 1),
        "make_report_pages": ("benchmarks/report_pages.tsv", 1),
        "make_report": ("benchmarks/report.tsv", 1),
    }
    if light.selected_labels:
        local["make_fidelity_table"] = ("benchmarks/first_light/label_fidelity.tsv", 1)
        local["draw_label_maps"] = ("benchmarks/first_light/label_maps.tsv", 1)
    if light_segmentation(light):
        local["make_segmentation_table"] = (
            "benchmarks/first_light/segmentation.tsv",
            len(STUDY.selected_segmentations),
        )
    return written_plan((LIGHT_SUMMARY, summary_document(STUDY, light, local)))


def files_of_first_light(wildcards):
    """Everything that the first light makes before its summary."""
    light = first_light()
    names = ["table.csv", "curves.png"] if light_table(light) else []
    names += ["label_fidelity.csv", "label_maps.png"] if light.selected_labels else []
    names += ["segmentation.csv"] if light_segmentation(light) else []
    made = [f"results/first_light/{name}" for name in names]
    return light_results(light) + made


def plan_document(wildcards):
    """The plan's path, after writing it anew: it changes with the configuration and with every job that finishes."""
    try:
        return written_plan((PLAN, price_study(STUDY, Path(), finished_first_light(config, STUDY, Path())).as_json()))
    except TokenLabelError as error:
        stop(error)


def results_about_labels():
    """Tables and figures of the labels themselves; none where no selected run learns from any."""
    if not STUDY.used_labels:
        return []
    return ["results/label_fidelity.csv", "results/figures/label_fidelity.png", "results/figures/label_maps.png"]


def results_to_show(wildcards):
    """What the report waits for: everything selected, or what is there and whole when it is asked for without any run's results.

    A result of which one file is missing or damaged is left out: Snakemake would fail. The pages say so. The report alone also
    makes what needs no run: plan, tables so far, Table 12.
    """
    targets = set(workflow.dag_settings.targets)
    alone = targets <= {"results/report.html", "results/pages", "first_light"} | WITHOUT_RUNS
    making = (
        alone and "results/report.html" in targets
    )  # and not Snakemake's own report over the pages, which makes nothing
    shown = []
    for result in RESULTS.values():
        if whole(result.files) or (result.selected and not alone) or (result.cheap and making):
            shown += result.files
        elif result.so_far and (making or whole([result.so_far])):
            table = STUDY.tables.get(result.name) or STUDY.segmentation_tables[result.name]
            if not making or whole_evaluations(table.inputs):  # else the page says that there is none
                shown.append(result.so_far)
    return shown


def report_contents(wildcards):
    """The list of what the report may show, after writing it; nothing on a dry run before the first run."""
    results = [{**vars(result), "command": result.command} for result in RESULTS.values()]
    document = {
        "results": results,
        "configuration": config,
        "digest": digest_of(config),
    }
    return written_plan((CONTENTS_DOCUMENT, document))


def in_report(kind, name=None):
    """Arguments of `report` that put a file where its result belongs: folder of the menu, and what the file is.

    kind: table, figure, data (CSV), ...; name: of the result, by default the rule's experiment.
    """

    def result(wildcards):
        return RESULTS[name or (wildcards.transfer if "transfer" in wildcards.keys() else wildcards.experiment)]

    return {
        "category": lambda wildcards: result(wildcards).category,
        "labels": lambda wildcards: {"result": result(wildcards).shown_as(kind)},
    }


def category_of_page(wildcards):
    """Folder of the menu that a page of the report lies in."""
    return RESULTS[wildcards.page].category if wildcards.page in RESULTS else ABOUT_FOLDER


def labels_of_page(wildcards):
    """What a page of the report is."""
    page = wildcards.page
    if page not in RESULTS:
        return {"result": ABOUT_PAGES.get(page, page)}
    return {"result": RESULTS[page].shown_as(RESULTS[page].state_of_table)}


def category_of_overlays(wildcards):
    """Folder of the menu that a segmenter's page of overlays lies in."""
    return overlays_place(STUDY, wildcards.segmentation, wildcards.seed)[0]


def labels_of_overlays(wildcards):
    """Which segmenter's it is."""
    return {"result": overlays_place(STUDY, wildcards.segmentation, wildcards.seed)[1]}


def place_of_views():
    """Arguments of `report` for the page of a segmenter beside its classifier."""

    def result(wildcards):
        return RESULTS[f"views_{wildcards.transfer}"]

    return {
        "category": lambda wildcards: result(wildcards).category,
        "labels": lambda wildcards: {"result": result(wildcards).shown_as("figure")},
    }


def viewed_run(wildcards):
    """The segmenter on an experiment's page of views, and its seed."""
    table = STUDY.segmentation_tables[wildcards.transfer]
    if table.viewed is None:
        raise WorkflowError(
            f"{table.views}: no row of {table.name} has a backbone that is trained, so none has tokens to show."
        )
    return table.viewed, table.seeds[0]


def inputs_of_views(wildcards):
    """Markers of the segmenter, of its backbone's run and of the scenes on a page of views."""
    run, seed = viewed_run(wildcards)
    return [ancient(marker) for marker in (run.done(seed), run.start.done(seed), run.scenes.marker)]


def arguments_of_views(wildcards):
    """Their folders, as command line arguments."""
    run, seed = viewed_run(wildcards)
    folders = [Path(found.done(seed)).parent for found in (run, run.start)]
    return shlex.join([str(folders[0]), run.scenes.folder, "--tokens", str(folders[1])])


def said_of_table(wildcards):
    """What captions say of an experiment: its question, the paper's table, and what caps changed."""
    table = STUDY.tables[wildcards.experiment]
    return said_of(table, capped_words(table))


def said_of_transfer(wildcards):
    """The same of an experiment of segmentation."""
    table = STUDY.segmentation_tables[wildcards.transfer]
    return said_of(table, capped_words(table))


def said_of(table, capped):
    """The words that captions take."""
    return {
        "question": as_rst(table.experiment.question),
        "paper": as_rst(table.experiment.paper),
        "capped": as_rst(capped),
    }
