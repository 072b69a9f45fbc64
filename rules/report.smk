rule make_report:
    """Snakemake's HTML report of the results that exist."""
    input:
        results_to_report,
    output:
        html="results/report.html",
    log:
        "logs/report.log",
    benchmark:
        "benchmarks/report.tsv"
    retries: 1
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
        targets=results_to_show(),
    shell:
        "{params.python} -m tokenlabel report {params.targets} --snakefile {params.snakefile} --configfile {params.study}"
        " --out {output.html} --log {log}"
