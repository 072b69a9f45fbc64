"""What the first light waits for and writes before its summary."""


def table_of_first_light(wildcards):
    """Evaluations of the first light, and the plan that names them."""
    table = light_table(first_light())
    return table.inputs + plan_of_table(table)


def trainings_of_first_light(wildcards):
    """Markers of the first light's runs, and the plan that names them."""
    table = light_table(first_light())
    return table.trainings + plan_of_table(table)


def segmentation_of_first_light(wildcards):
    """Evaluation of the first light's segmenter, and the plan that names it."""
    table = light_segmentation(first_light())
    return table.inputs + plan_of_table(table)


def shards_of_first_light(wildcards):
    """Markers of the first light's shards."""
    return [ancient(marker) for job in first_light().selected_labels for marker in job.markers]


def fidelity_of_first_light(wildcards):
    """Comparisons of the first light's labels with their annotators."""
    return [first_light().fidelity_of(job) for job in first_light().selected_labels]


def plan_of_light_summary(wildcards):
    """What the summary reads, after writing it; rules without a GPU are named with their benchmark files here."""
    light, tables = first_light(), len(STUDY.selected_tables)
    local = {}
    if light_table(light):
        local["make_table"] = ("benchmarks/first_light/table.tsv", tables)
        local["draw_curves"] = ("benchmarks/first_light/curves.tsv", tables)
    local |= {
        "make_plan": ("benchmarks/plan.tsv", 1),
        "make_report_pages": ("benchmarks/report_pages.tsv", 1),
        "make_report": ("benchmarks/report.tsv", 1),
    }
    if light.selected_labels:
        local["make_fidelity_table"] = ("benchmarks/first_light/label_fidelity.tsv", 1)
        local["draw_label_maps"] = ("benchmarks/first_light/label_maps.tsv", 1)
    if light_segmentation(light):
        local["make_segmentation_table"] = (
            "benchmarks/first_light/segmentation.tsv",
            len(STUDY.selected_segmentations),
        )
    return written_plan((LIGHT_SUMMARY, summary_document(STUDY, light, local)))


def files_of_first_light(wildcards):
    """Everything that the first light makes before its summary."""
    light = first_light()
    names = ["table.csv", "curves.png"] if light_table(light) else []
    names += ["label_fidelity.csv", "label_maps.png"] if light.selected_labels else []
    names += ["segmentation.csv"] if light_segmentation(light) else []
    made = [f"results/first_light/{name}" for name in names]
    return light_results(light) + made
