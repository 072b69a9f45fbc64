"""Token labeling: photographs -> manifest -> label shards -> checkpoints -> evaluations -> tables -> report."""

from snakemake.utils import min_version

min_version("9.14")


configfile: f"{workflow.basedir}/config.yaml"


report: "rules/captions/study.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/annotate.smk"
include: "rules/train.smk"
include: "rules/eval.smk"
include: "rules/published.smk"
include: "rules/ablate.smk"
include: "rules/segment.smk"
include: "rules/so_far.smk"
include: "rules/plan.smk"
include: "rules/report.smk"
include: "rules/first_light.smk"


rule all:
    """Everything that `select:` names: labels, runs, tables, figures, the report."""
    default_target: True
    input:
        [table.csv for table in STUDY.selected_tables + STUDY.selected_segmentations],
        results_about_labels(),
        "results/report.html",


rule so_far:
    """Every table of the catalogue from what exists, the rest `planned`: results/so_far."""
    input:
        [path for table in [*STUDY.tables.values(), *STUDY.offered_segmentations] for path in table.so_far],
        "results/so_far/index.csv",


rule labels:
    """All label shards of the selected annotators."""
    input:
        [marker for job in STUDY.selected_labels for marker in job.markers],


rule first_light:
    """Every rule once, before the real study: 1 % of the photographs, one epoch, the study's own model and annotator."""
    input:
        "results/first_light.csv",
