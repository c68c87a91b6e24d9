"""The page of several seeds: the mean with its two intervals, and every run; none is singled out."""

from pathlib import Path

from nissl.evaluation.table import score_table
from nissl.files import write_whole
from nissl.reporting.contents import read_run
from nissl.reporting.run_page import PAGE, counted, environment, short, warnings
from nissl.runs.folder import read_json
from nissl.runs.format import Tree, load_config
from nissl.runs.seeds import runs_of
from nissl.tasks.task import Task, task_of


def write_seeds_report(folder: Path) -> Path:
    """Write report.html of several seeds from their metrics.json, with links to the pages of the runs.

    Raises:
        InputError: the folder does not hold several seeds, or was not measured yet.
        ResourceError: the disk is full; an older report is untouched.

    """
    runs = runs_of(folder)
    metrics = read_json(folder / "metrics.json")
    task = task_of(load_config(folder / "config.toml").task)
    measured = {int(seed): dice for seed, dice in metrics["runs"].items()}
    facts = {seed: read_json(run / "split.json") for seed, run in runs.items()}
    of_runs = [text for run in runs.values() for text in warnings(read_run(run))]
    template = environment().get_template("seeds.html.j2")
    page = template.render(
        title=folder.resolve().name,
        headline=seeds_headline(task, metrics),
        task=task,
        results=score_table(task, metrics),
        metrics=metrics,
        warnings=list(dict.fromkeys([*metrics["warnings"], *of_runs])),
        policy=metrics.get("policy", task.policy),
        rows=[(seed, run.name, measured.get(seed), facts[seed]) for seed, run in runs.items()],
        settings=(folder / "config.toml").read_text(encoding="utf-8"),
    )
    write_whole(folder / PAGE, page)
    return folder / PAGE


def seeds_headline(task: Task, metrics: Tree) -> str:
    """Say in one sentence how well the training does over its seeds."""
    overall, primary, count = metrics["overall"], task.primary, len(metrics["runs"])
    ends = (overall[f"{primary.name}_ci_{what}"] for what in ("seeds", "cases"))
    over_seeds, over_cases = (
        "no interval" if low is None else f"{short(primary, low)} to {short(primary, high)}" for low, high in ends
    )
    text = f"{primary.title} {short(primary, overall[primary.name], overall.get('unit', ''))}"
    text += f", mean over {counted(count, 'seed')}: 95 % interval {over_seeds} over seeds"
    text += f", {over_cases} over {counted(metrics['n_cases'], 'test image')}"
    return text + (f"; trivial {short(primary, overall[f'trivial_{primary.name}'])}." if task.trivial else ".")
