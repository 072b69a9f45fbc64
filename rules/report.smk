rule make_report_pages:
    """Pages of the report: every table to sort and search, configuration, versions, and what is not made yet."""
    input:
        results=results_to_show,
        contents=report_contents,
    output:
        pages=report(
            directory("results/pages"),
            patterns=["{page}.html"],
            caption="captions/page.rst",
            category=category_of_page,
            labels=labels_of_page,
        ),
    log:
        "logs/report_pages.log",
    benchmark:
        "benchmarks/report_pages.tsv"
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
        contents=CONTENTS_DOCUMENT,
        about=ABOUT,
    shell:
        "{params.python} -m tokenlabel report pages --spec {params.contents} --out {output.pages} --log {log}"


rule make_report:
    """Snakemake's HTML report of the results that exist."""
    input:
        results=results_to_show,
        pages="results/pages",
    output:
        html="results/report.html",
    log:
        "logs/report.log",
    benchmark:
        "benchmarks/report.tsv"
    retries: 1
    localrule: True
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        python=PYTHON,
        study=RESOLVED,
        snakefile=workflow.main_snakefile,
    shell:
        "{params.python} -m tokenlabel report --snakefile {params.snakefile:q} --configfile {params.study}"
        " --pages {input.pages} --out {output.html} --log {log}"
