rule make_plan:
    """What each target costs: jobs, GPU hours, wall time, storage, money; needs no data and runs in seconds."""
    input:
        plan_document,
    output:
        csv=report("results/plan.csv", caption="captions/plan.rst", **in_report("data (CSV)", "plan")),
        markdown="results/plan.md",
        figure=report(
            "results/figures/plan.png",
            caption="captions/plan.rst",
            **in_report("where the hours go", "plan"),
        ),
    log:
        "logs/plan.log",
    benchmark:
        "benchmarks/plan.tsv"
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
        plan=PLAN,
    shell:
        "{params.python} -m tokenlabel plan --spec {params.plan} --csv {output.csv} --markdown {output.markdown}"
        " --figure {output.figure} --log {log}"
