rule make_scene_manifest:
    """Lists photographs and masks once, and looks at every mask: its size, its ids, the pixels of each class."""
    input:
        segmentation_root_after_spec,
    output:
        done="results/scenes/{scenes}/manifest.done",
    log:
        "logs/scenes/{scenes}.log",
    benchmark:
        "benchmarks/scenes/{scenes}.tsv"
    retries: retries(1)
    conda:
        "../envs/train.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SCENE_MANIFEST_MEM_MB * attempt,
        runtime=lambda wildcards, attempt: MANIFEST_MINUTES * attempt,
    params:
        python=PYTHON,
        machine=MACHINE,
        spec="results/scenes/{scenes}/spec.json",
    shell:
        "{params.python} -m tokenlabel data scenes --spec {params.spec} --machine {params.machine} --done {output.done}"
        " --log {log}"


use rule train_run as train_segmentation with:
    input:
        manifest=scenes_after_spec,
        start=start_of_run,
        before=leg_before,
    output:
        done="results/segmentation/{segmentation}/seed{seed}/done.json",
    log:
        "logs/segmentation/{segmentation}/seed{seed}/train.log",
    benchmark:
        "benchmarks/segmentation/{segmentation}/seed{seed}/train.tsv"
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.segment_mem_mb * SETTINGS.processes * attempt,
        runtime=train_runtime,
        gpu=gpus_of_run,
        nodes=nodes_of_run,
        mpi=for_several_processes("srun"),
        tasks_per_node=for_several_processes(SETTINGS.processes),
        tasks_per_gpu=for_several_processes(0),  # as for train_run
        cpus_per_task=for_several_processes(SETTINGS.threads),
    params:
        train=training_command,
        machine=MACHINE,
        spec="results/segmentation/{segmentation}/spec.json",
        manifest=scene_folder,
        arguments=run_arguments,


use rule train_segmentation as train_segmentation_leg with:
    output:
        done="results/segmentation/{segmentation}/seed{seed}/leg-{leg}-of-{legs}.done",
    log:
        "logs/segmentation/{segmentation}/seed{seed}/leg-{leg}-of-{legs}.log",
    benchmark:
        "benchmarks/segmentation/{segmentation}/seed{seed}/leg-{leg}-of-{legs}.tsv"


rule evaluate_segmentation:
    """A segmenter on the validation scenes, single and multi-scale: mean IoU, pixel accuracy, each class, a page of overlays."""
    input:
        manifest=scenes_after_evaluation,
        done=ancient("results/segmentation/{segmentation}/seed{seed}/done.json"),
    output:
        result="results/segmentation/{segmentation}/seed{seed}/evaluation-{evaluation}.json",
        classes="results/segmentation/{segmentation}/seed{seed}/evaluation-{evaluation}.classes.csv",
        overlays=report(
            "results/segmentation/{segmentation}/seed{seed}/evaluation-{evaluation}.png",
            caption="captions/overlays.rst",
            category=category_of_overlays,
            labels=labels_of_overlays,
        ),
    log:
        "logs/segmentation/{segmentation}/seed{seed}/evaluation-{evaluation}.log",
    benchmark:
        "benchmarks/segmentation/{segmentation}/seed{seed}/evaluation-{evaluation}.tsv"
    retries: retries(2)
    conda:
        "../envs/eval.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.segment_mem_mb * attempt,
        runtime=segmentation_runtime,
        gpu=GPUS,
    params:
        python=PYTHON,
        machine=MACHINE,
        spec="results/evaluations/{evaluation}.json",
        manifest=scene_folder,
        run_folder=seed_folder,
        about=ABOUT,
    shell:
        "{params.python} -m tokenlabel segment evaluate --spec {params.spec} --machine {params.machine}"
        " --manifest {params.manifest} --run {params.run_folder} --out {output.result} --log {log}"


rule make_segmentation_table:
    """One experiment's table, page and figure of segmentation: ours beside the paper's numbers and the methods that it cites."""
    input:
        results_of_transfer,
    output:
        csv=report(
            "results/{transfer}.csv",
            caption="captions/segmentation_table.rst",
            **in_report("data (CSV)"),
        ),
        markdown="results/{transfer}.md",
        figure=report(
            "results/figures/{transfer}.png",
            caption="captions/segmentation_figure.rst",
            **in_report("figure"),
        ),
        data="results/figures/{transfer}.csv",
    log:
        "logs/tables/{transfer}.log",
    benchmark:
        "benchmarks/tables/{transfer}.tsv"
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
        plan=lambda wildcards: STUDY.segmentation_tables[wildcards.transfer].plan,
        said=said_of_transfer,
        about=ABOUT,
    shell:
        "{params.python} -m tokenlabel table segmentation --spec {params.plan} --csv {output.csv}"
        " --markdown {output.markdown} --figure {output.figure} --log {log}"


use rule draw_curves as draw_segmentation_curves with:
    input:
        trainings_of_transfer,
    output:
        csv="results/figures/curves_{transfer}.csv",
        figure=report(
            "results/figures/curves_{transfer}.png",
            caption="captions/segmentation_curves.rst",
            **in_report("training curves"),
        ),
    log:
        "logs/figures/curves_{transfer}.log",
    benchmark:
        "benchmarks/figures/curves_{transfer}.tsv"
    params:
        python=PYTHON,
        plan=lambda wildcards: STUDY.segmentation_tables[wildcards.transfer].plan,
        said=said_of_transfer,
        about=ABOUT,


rule draw_segmentation_views:
    """Photograph, tokens, segmentation and relevance side by side, of one segmenter and the run that its backbone comes from."""
    input:
        inputs_of_views,
    output:
        figure=report(
            "results/figures/{transfer}_views.png",
            caption="captions/segmentation_views.rst",
            **place_of_views(),
        ),
    log:
        "logs/figures/{transfer}_views.log",
    benchmark:
        "benchmarks/figures/{transfer}_views.tsv"
    retries: 1
    conda:
        "../envs/eval.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        python=PYTHON,
        machine=MACHINE,
        arguments=arguments_of_views,
        said=said_of_transfer,
        about=ABOUT,
    shell:
        "{params.python} -m tokenlabel visualise {params.arguments} --machine {params.machine} --device cpu --count 4 --classes 1"
        " --out {output.figure} --log {log}"
