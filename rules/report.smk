rule make_report:
    """Snakemake's HTML report of the results that exist."""
    input:
        results_to_report,
    output:
        html="results/report.html",
    params:
        snakefile=workflow.main_snakefile,
        overlays=lambda wildcards: [str(Path(path).resolve()) for path in workflow.configfiles],
        targets=selected_results(),
    log:
        "logs/report.log",
    benchmark:
        "benchmarks/report.tsv"
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    retries: 1
    shell:
        "{PYTHON} -m tokenlabel report {params.targets} --snakefile {params.snakefile} --configfile {params.overlays}"
        " --out {output.html} --log {log}"
