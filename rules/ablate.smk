rule make_table:
    """One experiment's table, page and figure: ours beside the paper's numbers."""
    input:
        results_of_table,
    output:
        csv=report(
            "results/{experiment}.csv",
            caption="captions/table.rst",
            **in_report("data (CSV)"),
        ),
        markdown="results/{experiment}.md",
        figure=report(
            "results/figures/{experiment}.png",
            caption="captions/figure.rst",
            **in_report("figure"),
        ),
        data="results/figures/{experiment}.csv",
    log:
        "logs/tables/{experiment}.log",
    benchmark:
        "benchmarks/tables/{experiment}.tsv"
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
        plan=lambda wildcards: STUDY.tables[wildcards.experiment].plan,
        said=said_of_table,
        about=ABOUT,
    shell:
        "{params.python} -m tokenlabel table --spec {params.plan} --csv {output.csv} --markdown {output.markdown}"
        " --figure {output.figure} --log {log}"


rule draw_curves:
    """Training curves of one experiment's runs: losses, validation accuracy, learning rate."""
    input:
        trainings_of_table,
    output:
        csv="results/figures/curves_{experiment}.csv",
        figure=report(
            "results/figures/curves_{experiment}.png",
            caption="captions/curves.rst",
            **in_report("training curves"),
        ),
    log:
        "logs/figures/curves_{experiment}.log",
    benchmark:
        "benchmarks/figures/curves_{experiment}.tsv"
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
        plan=lambda wildcards: STUDY.tables[wildcards.experiment].plan,
        said=said_of_table,
        about=ABOUT,
    shell:
        "{params.python} -m tokenlabel table curves --spec {params.plan} --csv {output.csv} --figure {output.figure}"
        " --log {log}"


rule draw_accuracy_parameters:
    """Accuracy against parameters, as the paper's Fig. 1: ours of `main`, its LV-ViTs, the other methods of its Table 4."""
    input:
        results_of_accuracy,
    output:
        figure=report(
            "results/figures/accuracy_parameters.png",
            caption="captions/accuracy_parameters.rst",
            **in_report("figure", "accuracy_parameters"),
        ),
        data="results/figures/accuracy_parameters.csv",
    log:
        "logs/figures/accuracy_parameters.log",
    benchmark:
        "benchmarks/figures/accuracy_parameters.tsv"
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
        plan=lambda wildcards: STUDY.tables["main"].plan,
    shell:
        "{params.python} -m tokenlabel table accuracy --spec {params.plan} --figure {output.figure} --log {log}"
