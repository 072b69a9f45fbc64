# The plan is named by its input and not worked out again: evaluations that this very call makes would give another name.
rule make_table_so_far:
    """One experiment's table, page and figure from the evaluations that exist; rows without one are `planned`."""
    input:
        plan_of_table_so_far,
    output:
        csv="results/so_far/{experiment}.csv",
        markdown="results/so_far/{experiment}.md",
        figure="results/so_far/figures/{experiment}.png",
        data="results/so_far/figures/{experiment}.csv",
    log:
        "logs/so_far/{experiment}.log",
    benchmark:
        "benchmarks/so_far/{experiment}.tsv"
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
        question=lambda wildcards: STUDY.tables[wildcards.experiment].experiment.question,
        paper=lambda wildcards: STUDY.tables[wildcards.experiment].experiment.paper,
    shell:
        "{params.python} -m tokenlabel table --so-far --spec {input} --csv {output.csv} --markdown {output.markdown}"
        " --figure {output.figure} --log {log}"


rule make_segmentation_so_far:
    """The same of one experiment of segmentation."""
    input:
        plan_of_table_so_far,
    output:
        csv="results/so_far/{transfer}.csv",
        markdown="results/so_far/{transfer}.md",
        figure="results/so_far/figures/{transfer}.png",
        data="results/so_far/figures/{transfer}.csv",
    log:
        "logs/so_far/{transfer}.log",
    benchmark:
        "benchmarks/so_far/{transfer}.tsv"
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
        question=lambda wildcards: STUDY.segmentation_tables[wildcards.transfer].experiment.question,
        paper=lambda wildcards: STUDY.segmentation_tables[wildcards.transfer].experiment.paper,
    shell:
        "{params.python} -m tokenlabel table segmentation --so-far --spec {input} --csv {output.csv}"
        " --markdown {output.markdown} --figure {output.figure} --log {log}"


rule make_so_far_index:
    """One line per table of the catalogue: how many of its rows and seeds are done."""
    input:
        plans_of_tables_so_far,
    output:
        csv=report(
            "results/so_far/index.csv",
            caption="captions/so_far_index.rst",
            **in_report("data (CSV)", "so_far"),
        ),
        markdown="results/so_far/index.md",
    log:
        "logs/so_far/index.log",
    benchmark:
        "benchmarks/so_far/index.tsv"
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
    shell:
        "{params.python} -m tokenlabel table index --specs {input} --csv {output.csv} --markdown {output.markdown}"
        " --log {log}"


rule make_comparison:
    """Table 12: LV-ViT-M at 384 px against CaiT, our side computed from the configuration; no run is needed."""
    input:
        plan_of_comparison,
    output:
        csv=report(
            "results/comparison_cait.csv",
            caption="captions/comparison.rst",
            category="Table 12, comparison with CaiT",
            labels={"result": "Data (CSV)"},
        ),
        markdown="results/comparison_cait.md",
    log:
        "logs/tables/comparison_cait.log",
    benchmark:
        "benchmarks/tables/comparison_cait.tsv"
    retries: 1
    localrule: True
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 20 * attempt,
    params:
        python=PYTHON,
        plan=lambda wildcards: comparison_plan()[0],
    shell:
        "{params.python} -m tokenlabel table comparison --spec {params.plan} --csv {output.csv} --markdown {output.markdown}"
        " --log {log}"
