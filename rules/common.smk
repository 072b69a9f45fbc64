"""The plan, made once per parse, and what of it a path belongs to. Imports tokenlabel.core only, never torch.

The functions that rules use stand in functions/, with the names that are imported here.
"""

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


include: "functions/inputs.smk"
include: "functions/resources.smk"
include: "functions/first_light.smk"
include: "functions/report.smk"
