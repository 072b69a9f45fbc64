rule make_plan:
    """What each target costs: jobs, GPU hours, wall time, storage, money; needs no data and runs in seconds."""
    input:
        plan_document,
    output:
        csv="results/plan.csv",
        markdown="results/plan.md",
        figure=report(
            "results/figures/plan.png",
            caption="captions/plan.rst",
            category="Plan",
            labels={"what": "GPU hours of each target"},
        ),
    log:
        "logs/plan.log",
    benchmark:
        "benchmarks/plan.tsv"
    retries: 1
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 20 * attempt,
    params:
        python=PYTHON,
        plan=PLAN,
    shell:
        "{params.python} -m tokenlabel plan --spec {params.plan} --csv {output.csv} --markdown {output.markdown}"
        " --figure {output.figure} --log {log}"
