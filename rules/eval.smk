rule evaluate_run:
    """Everything measured of one run: accuracies, calibration, each class, speed; its tokens against an annotator's maps."""
    input:
        manifest=manifest_after_spec(evaluation_of),
        done=ancient("results/runs/{run}/seed{seed}/done.json"),
        labels=labels_to_compare,
    output:
        result="results/runs/{run}/seed{seed}/evaluation-{evaluation}.json",
        classes="results/runs/{run}/seed{seed}/evaluation-{evaluation}.classes.csv",
    log:
        "logs/runs/{run}/seed{seed}/evaluation-{evaluation}.log",
    benchmark:
        "benchmarks/runs/{run}/seed{seed}/evaluation-{evaluation}.tsv"
    retries: retries(2)
    conda:
        "../envs/eval.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.annotate_mem_mb * attempt,
        runtime=evaluate_runtime,
        gpu=GPUS,
    params:
        python=PYTHON,
        machine=MACHINE,
        spec="results/evaluations/{evaluation}.json",
        manifest=manifest_folder,
        run_folder=seed_folder,
        labels=compare_argument,
    shell:
        "{params.python} -m tokenlabel.eval --spec {params.spec} --machine {params.machine} --manifest {params.manifest}"
        " --run {params.run_folder} {params.labels} --out {output.result} --log {log}"


rule draw_label_maps:
    """One page of the selected annotators' maps over photographs: a look says whether the labels are right."""
    input:
        manifest=ancient(STUDY.data.marker),
        labels=[ancient(marker) for job in STUDY.drawn_labels for marker in job.markers],
    output:
        figure=report(
            "results/figures/label_maps.png",
            caption="captions/label_maps.rst",
            **in_report("figure", "label_maps"),
        ),
    log:
        "logs/figures/label_maps.log",
    benchmark:
        "benchmarks/figures/label_maps.tsv"
    retries: 1
    conda:
        "../envs/eval.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 20 * attempt,
    params:
        python=PYTHON,
        machine=MACHINE,
        manifest=manifest_folder,
        labels=[job.folder for job in STUDY.drawn_labels],
        about=ABOUT,
    shell:
        "{params.python} -m tokenlabel draw --machine {params.machine} --manifest {params.manifest} --labels {params.labels}"
        " --out {output.figure} --log {log}"


rule make_fidelity_table:
    """Fidelity of every selected annotator's labels: a table and a figure."""
    input:
        measured=[STUDY.fidelity_of(job) for job in STUDY.used_labels],
    output:
        csv=report(
            "results/label_fidelity.csv",
            caption="captions/label_fidelity.rst",
            **in_report("data (CSV)", "label_fidelity"),
        ),
        figure=report(
            "results/figures/label_fidelity.png",
            caption="captions/label_fidelity.rst",
            **in_report("figure", "label_fidelity"),
        ),
    log:
        "logs/tables/label_fidelity.log",
    benchmark:
        "benchmarks/tables/label_fidelity.tsv"
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
        about=ABOUT,
    shell:
        "{params.python} -m tokenlabel table fidelity {input.measured} --csv {output.csv} --figure {output.figure} --log {log}"
