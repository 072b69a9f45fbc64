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
include: "rules/ablate.smk"
include: "rules/report.smk"


localrules:
    all,
    labels,
    make_table,
    draw_curves,
    make_fidelity_table,
    draw_label_maps,
    make_report_pages,
    make_report,


rule all:
    """Everything that `select:` names: labels, runs, tables, figures, the report."""
    default_target: True
    input:
        [table.csv for table in STUDY.selected_tables],
        results_about_labels(),
        "results/report.html",


rule labels:
    """All label shards of the selected annotators."""
    input:
        [marker for job in STUDY.selected_labels for marker in job.markers],
