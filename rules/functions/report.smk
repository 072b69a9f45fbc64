"""What the plan and the report wait for, where a result stands in the menu, and what captions say."""


def plan_document(wildcards):
    """The plan's path, after writing it anew: it changes with the configuration and with every job that finishes."""
    try:
        return written_plan((PLAN, price_study(STUDY, Path(), finished_first_light(config, STUDY, Path())).as_json()))
    except TokenLabelError as error:
        stop(error)


def results_about_labels():
    """Tables and figures of the labels themselves; none where no selected run learns from any."""
    if not STUDY.used_labels:
        return []
    return ["results/label_fidelity.csv", "results/figures/label_fidelity.png", "results/figures/label_maps.png"]


def results_to_show(wildcards):
    """What the report waits for: everything selected, or what is there and whole when it is asked for without any run's results.

    A result of which one file is missing or damaged is left out: Snakemake would fail. The pages say so. The report alone also
    makes what needs no run: plan, tables so far, Table 12.
    """
    targets = set(workflow.dag_settings.targets)
    alone = targets <= {"results/report.html", "results/pages", "first_light"} | WITHOUT_RUNS
    making = (
        alone and "results/report.html" in targets
    )  # and not Snakemake's own report over the pages, which makes nothing
    shown = []
    for result in RESULTS.values():
        if whole(result.files) or (result.selected and not alone) or (result.cheap and making):
            shown += result.files
        elif result.so_far and (making or whole([result.so_far])):
            table = STUDY.tables.get(result.name) or STUDY.segmentation_tables[result.name]
            if not making or whole_evaluations(table.inputs):  # else the page says that there is none
                shown.append(result.so_far)
    return shown


def report_contents(wildcards):
    """The list of what the report may show, after writing it; nothing on a dry run before the first run."""
    results = [{**vars(result), "command": result.command} for result in RESULTS.values()]
    document = {
        "results": results,
        "configuration": config,
        "digest": digest_of(config),
    }
    return written_plan((CONTENTS_DOCUMENT, document))


def in_report(kind, name=None):
    """Arguments of `report` that put a file where its result belongs: folder of the menu, and what the file is.

    kind: table, figure, data (CSV), ...; name: of the result, by default the rule's experiment.
    """

    def result(wildcards):
        return RESULTS[name or (wildcards.transfer if "transfer" in wildcards.keys() else wildcards.experiment)]

    return {
        "category": lambda wildcards: result(wildcards).category,
        "labels": lambda wildcards: {"result": result(wildcards).shown_as(kind)},
    }


def category_of_page(wildcards):
    """Folder of the menu that a page of the report lies in."""
    return RESULTS[wildcards.page].category if wildcards.page in RESULTS else ABOUT_FOLDER


def labels_of_page(wildcards):
    """What a page of the report is."""
    page = wildcards.page
    if page not in RESULTS:
        return {"result": ABOUT_PAGES.get(page, page)}
    return {"result": RESULTS[page].shown_as(RESULTS[page].state_of_table)}


def category_of_overlays(wildcards):
    """Folder of the menu that a segmenter's page of overlays lies in."""
    return overlays_place(STUDY, wildcards.segmentation, wildcards.seed)[0]


def labels_of_overlays(wildcards):
    """Which segmenter's it is."""
    return {"result": overlays_place(STUDY, wildcards.segmentation, wildcards.seed)[1]}


def place_of_views():
    """Arguments of `report` for the page of a segmenter beside its classifier."""

    def result(wildcards):
        return RESULTS[f"views_{wildcards.transfer}"]

    return {
        "category": lambda wildcards: result(wildcards).category,
        "labels": lambda wildcards: {"result": result(wildcards).shown_as("figure")},
    }


def viewed_run(wildcards):
    """The segmenter on an experiment's page of views, and its seed."""
    table = STUDY.segmentation_tables[wildcards.transfer]
    if table.viewed is None:
        raise WorkflowError(
            f"{table.views}: no row of {table.name} has a backbone that is trained, so none has tokens to show."
        )
    return table.viewed, table.seeds[0]


def inputs_of_views(wildcards):
    """Markers of the segmenter, of its backbone's run and of the scenes on a page of views."""
    run, seed = viewed_run(wildcards)
    return [ancient(marker) for marker in (run.done(seed), run.start.done(seed), run.scenes.marker)]


def arguments_of_views(wildcards):
    """Their folders, as command line arguments."""
    run, seed = viewed_run(wildcards)
    folders = [Path(found.done(seed)).parent for found in (run, run.start)]
    return shlex.join([str(folders[0]), run.scenes.folder, "--tokens", str(folders[1])])


def said_of_table(wildcards):
    """What captions say of an experiment: its question, the paper's table, and what caps changed."""
    table = STUDY.tables[wildcards.experiment]
    return said_of(table, capped_words(table))


def said_of_transfer(wildcards):
    """The same of an experiment of segmentation."""
    table = STUDY.segmentation_tables[wildcards.transfer]
    return said_of(table, capped_words(table))


def said_of(table, capped):
    """The words that captions take."""
    return {
        "question": as_rst(table.experiment.question),
        "paper": as_rst(table.experiment.paper),
        "capped": as_rst(capped),
    }
