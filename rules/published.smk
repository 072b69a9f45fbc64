rule evaluate_published:
    """One published checkpoint on the validation split, with the crop of the released validation."""
    input:
        manifest=manifest_after_spec(lambda wildcards: published_job_of(wildcards).document),
    output:
        result="results/published/{published}/evaluation.json",
        classes="results/published/{published}/evaluation.classes.csv",
    log:
        "logs/published/{published}/evaluation.log",
    benchmark:
        "benchmarks/published/{published}/evaluation.tsv"
    retries: retries(1)
    conda:
        "../envs/eval.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.annotate_mem_mb * attempt,
        runtime=published_runtime,
        gpu=GPUS,
    params:
        python=PYTHON,
        machine=MACHINE,
        spec="results/published/{published}/spec.json",
        manifest=manifest_folder,
        arguments=published_arguments,
    shell:
        "{params.python} -m tokenlabel evaluate published --spec {params.spec} --machine {params.machine}"
        " --manifest {params.manifest} {params.arguments} --out {output.result} --log {log}"


rule make_published:
    """Published checkpoints as measured here beside the printed accuracies: table, page and figure."""
    input:
        results_of_published,
    output:
        csv=report(
            STUDY.published.csv,
            caption="captions/published.rst",
            **in_report("data (CSV)", "published"),
        ),
        markdown=STUDY.published.markdown,
        figure=report(
            STUDY.published.figure,
            caption="captions/published.rst",
            **in_report("figure", "published"),
        ),
    log:
        "logs/tables/published.log",
    benchmark:
        "benchmarks/tables/published.tsv"
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
        plan=STUDY.published.plan,
    shell:
        "{params.python} -m tokenlabel table published --spec {params.plan} --csv {output.csv}"
        " --markdown {output.markdown} --figure {output.figure} --log {log}"
