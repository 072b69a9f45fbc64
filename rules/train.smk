rule train_run:
    """Stage 2 or a fine-tuning: one run of one seed, or its last leg, continued from its checkpoint where it was interrupted."""
    input:
        manifest=manifest_after_spec(lambda wildcards: run_of(wildcards).document),
        labels=labels_of_run,
        start=start_of_run,
        before=leg_before,
    output:
        done="results/runs/{run}/seed{seed}/done.json",
    log:
        "logs/runs/{run}/seed{seed}/train.log",
    benchmark:
        "benchmarks/runs/{run}/seed{seed}/train.tsv"
    retries: retries(2)
    conda:
        "../envs/train.yaml"
    threads: SETTINGS.threads * SETTINGS.processes  # of one node, like memory
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.train_mem_mb * SETTINGS.processes * attempt,
        runtime=train_runtime,
        gpu=gpus_of_run,
        nodes=nodes_of_run,
        mpi=for_several_processes("srun"),
        tasks_per_node=for_several_processes(SETTINGS.processes if SETTINGS.processes > 1 else None),
        tasks=tasks_of_job,
        tasks_per_gpu=for_several_processes(0),  # the executor's own guess would be `tasks`
        cpus_per_task=for_several_processes(SETTINGS.threads),
    params:
        train=training_command,
        machine=MACHINE,
        spec="results/runs/{run}/spec.json",
        manifest=manifest_folder,
        arguments=run_arguments,
    shell:
        "{params.train} --spec {params.spec} --machine {params.machine} --manifest {params.manifest}"
        " {params.arguments} --seed {wildcards.seed} --done {output.done} --log {log}"


use rule train_run as train_leg with:
    output:
        done="results/runs/{run}/seed{seed}/leg-{leg}-of-{legs}.done",
    log:
        "logs/runs/{run}/seed{seed}/leg-{leg}-of-{legs}.log",
    benchmark:
        "benchmarks/runs/{run}/seed{seed}/leg-{leg}-of-{legs}.tsv"
