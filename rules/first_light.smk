use rule make_table as make_light_table with:
    input:
        table_of_first_light,
    output:
        csv="results/first_light/table.csv",
        markdown="results/first_light/table.md",
        figure="results/first_light/figures/table.png",
        data="results/first_light/figures/table.csv",
    log:
        "logs/first_light/table.log",
    benchmark:
        "benchmarks/first_light/table.tsv"
    params:
        plan=lambda wildcards: light_table(first_light()).plan,
        said="",


use rule draw_curves as draw_light_curves with:
    input:
        trainings_of_first_light,
    output:
        csv="results/first_light/curves.csv",
        figure="results/first_light/curves.png",
    log:
        "logs/first_light/curves.log",
    benchmark:
        "benchmarks/first_light/curves.tsv"
    params:
        plan=lambda wildcards: light_table(first_light()).plan,
        said="",


use rule make_fidelity_table as make_light_fidelity_table with:
    input:
        measured=fidelity_of_first_light,
    output:
        csv="results/first_light/label_fidelity.csv",
        figure="results/first_light/label_fidelity.png",
    log:
        "logs/first_light/label_fidelity.log",
    benchmark:
        "benchmarks/first_light/label_fidelity.tsv"


use rule draw_label_maps as draw_light_maps with:
    input:
        manifest=lambda wildcards: ancient(first_light().data.marker),
        labels=shards_of_first_light,
    output:
        figure="results/first_light/label_maps.png",
    log:
        "logs/first_light/label_maps.log",
    benchmark:
        "benchmarks/first_light/label_maps.tsv"
    params:
        manifest=lambda wildcards: first_light().data.folder,
        labels=lambda wildcards: [job.folder for job in first_light().selected_labels],


use rule make_segmentation_table as make_light_segmentation_table with:
    input:
        segmentation_of_first_light,
    output:
        csv="results/first_light/segmentation.csv",
        markdown="results/first_light/segmentation.md",
        figure="results/first_light/figures/segmentation.png",
        data="results/first_light/figures/segmentation.csv",
    log:
        "logs/first_light/segmentation.log",
    benchmark:
        "benchmarks/first_light/segmentation.tsv"
    params:
        plan=lambda wildcards: light_segmentation(first_light()).plan,
        said="",


rule make_light_summary:
    """What each rule took in the first light, and what that makes of the study: seconds, GPU hours, bytes."""
    input:
        files_of_first_light,
        "results/plan.csv",
        "results/report.html",
        plan=plan_of_light_summary,
    output:
        csv="results/first_light.csv",
        markdown="results/first_light.md",
    log:
        "logs/first_light/summary.log",
    benchmark:
        "benchmarks/first_light/summary.tsv"
    retries: 1
    localrule: True
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 20 * attempt,
    params:
        python=PYTHON,
        plan=LIGHT_SUMMARY,
    shell:
        "{params.python} -m tokenlabel table first_light --spec {params.plan} --csv {output.csv}"
        " --markdown {output.markdown} --log {log}"
