rule make_table:
    """One experiment's table and figure: ours beside the paper's numbers."""
    input:
        results_of_table,
    output:
        csv=report(
            "results/{experiment}.csv",
            caption="captions/table.rst",
            category="Tables",
            labels={"experiment": "{experiment}"},
        ),
        figure=report(
            "results/figures/{experiment}.png",
            caption="captions/figure.rst",
            category="Figures",
            labels={"experiment": "{experiment}"},
        ),
    log:
        "logs/tables/{experiment}.log",
    benchmark:
        "benchmarks/tables/{experiment}.tsv"
    retries: 1
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 20 * attempt,
    params:
        python=PYTHON,
        plan=lambda wildcards: STUDY.tables[wildcards.experiment].plan,
        question=lambda wildcards: STUDY.tables[wildcards.experiment].experiment.question,
        paper=lambda wildcards: STUDY.tables[wildcards.experiment].experiment.paper,
    shell:
        "{params.python} -m tokenlabel table --spec {params.plan} --csv {output.csv} --figure {output.figure} --log {log}"
