"""The page of a run: one HTML file that needs nothing else and can be read without a network."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from nissl.data.split import caveats
from nissl.evaluation.table import score_table
from nissl.files import write_whole
from nissl.metrics.metric import Metric
from nissl.reporting import curves
from nissl.reporting.contents import Contents, Tree, read_run
from nissl.reporting.gallery import Gallery, case_mean, draw_gallery, ranked
from nissl.runs.folder import measured_steps, unfinished
from nissl.tasks.task import Task
from nissl.training.protocol import published

if TYPE_CHECKING:
    from jinja2 import Environment

PRINTED_NAMES = {"unet": "U-Net", "vnet": "V-Net"}
# Stages that never see the images without masks.
BLIND_PRETRAININGS, BLIND_METHODS = ("none", "unit-norm"), ("supervised",)
PAGE = "report.html"
MOVED = 0.01
DEAD = 0.2


def write_report(run: Path, data: Path | None = None) -> Path:
    """Write report.html into a run folder from what the folder holds, and return its path.

    `data` is the folder of the data, where data.json does not name it.

    Raises:
        InputError: the folder is not a run.
        ResourceError: the disk is full; an older report is untouched.

    """
    contents = read_run(run)
    write_whole(run / PAGE, render(contents, draw_gallery(contents, data)))
    return run / PAGE


def environment() -> "Environment":
    """Templates of the pages; every text is escaped, and a name that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("nissl.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"fixed": fixed, "percent": percent, "counted": counted, "thousands": thousands}
    return templates


def render(contents: Contents, gallery: Gallery) -> str:
    """Fill the page; every text is escaped, and the page may load and run nothing."""
    template = environment().get_template("report.html.j2")
    return template.render(
        network=_name(contents),
        title=contents["data"].get("name") or contents.run.resolve().name,
        headline=headline(contents),
        warnings=warnings(contents),
        notes=(*contents.notes, *gallery.notes),
        gallery=gallery,
        legend=contents.task.legend(contents["data"].get("classes", [])),
        results=score_table(contents.task, metrics, details=True) if (metrics := contents["metrics"]) else None,
        task=contents.task,
        policy=contents["metrics"].get("policy", contents.task.policy),
        plots=_plots(contents),
        surroundings=surroundings(contents),
        verdict=verdict(contents["pretrain"].get("layers", [])),
        c=contents,
    )


def headline(contents: Contents) -> str:
    """Say in one sentence what was trained on what, and how well it does."""
    split, overall = contents["split"], contents["metrics"].get("overall", {})
    text = _name(contents)
    if split:
        unlabelled = counted(len(split.get("unlabelled", [])), "image")
        text += f" trained on {counted(len(split.get('labelled', [])), 'mask')}"
        text += f" and {unlabelled} without masks" if _uses_unlabelled(contents) else ""
    if not overall:
        return f"{text}; not measured yet."
    return f"{text}: {measured(contents.task, overall)}."


def measured(task: Task, overall: Tree) -> str:
    """Say in half a sentence how well a run does."""
    primary, unit = task.primary, overall.get("unit", "")
    low, high = overall[f"{primary.name}_ci"]
    value = short(primary, overall[primary.name], unit)
    interval = "" if low is None else f" [{short(primary, low)}, {short(primary, high)}]"
    trivial = f", trivial {short(primary, overall[f'trivial_{primary.name}'], unit)}" if task.trivial else ""
    return f"{primary.title} {value}{interval} on {counted(overall['n_cases'], 'test image')}{trivial}"


def short(metric: Metric, value: float | None, unit: str = "") -> str:
    """A value of a metric as it stands in a sentence, with two digits at most."""
    return replace(metric, digits=min(metric.digits, 2)).text(value, unit)


def _name(contents: Contents) -> str:
    name = str(contents["network"].get("name") or contents.config.get("net", {}).get("name", "Network"))
    return PRINTED_NAMES.get(name, name)


def _uses_unlabelled(contents: Contents) -> bool:
    pretraining = contents.config.get("pretrain", {}).get("name", "none")
    method = contents.config.get("method", {}).get("name", "supervised")
    return pretraining not in BLIND_PRETRAININGS or method not in BLIND_METHODS


def warnings(contents: Contents) -> list[str]:
    """List what makes the numbers of this run less than they seem."""
    split, overall = contents["split"], contents["metrics"].get("overall", {})
    of_split = caveats(split.get("shared_groups", []), split.get("transductive", []))
    protocol = published(contents.config.get("protocol", ""))
    of_protocol = protocol.caveats(contents.run) if protocol else []
    found = [one.text for one in (*unfinished(*measured_steps(contents.run)), *of_split, *of_protocol)]
    primary = contents.task.primary
    value, trivial = overall.get(primary.name), overall.get(f"trivial_{primary.name}")
    if value is not None and trivial is not None and primary.sign * (value - trivial) <= 0:
        found.append(f"The network is no better than the trivial prediction: {contents.task.trivial}.")
    found += contents["metrics"].get("warnings", [])
    found += _course(contents)
    unused = len(split.get("unlabelled", []))
    if unused and not _uses_unlabelled(contents):
        found.append(f"{counted(unused, 'image')} without masks had no part in this training.")
    return list(dict.fromkeys(found))


def _course(contents: Contents) -> list[str]:
    """List what happened to the run on its way."""
    found, known = [], contents["env"]
    for session in known.get("continued", []):
        if session["changed"]:
            changed = "; ".join(session["changed"])
            found.append(f"The run was continued with other settings or data than it began with: {changed}.")
        for name, title in (("nissl", "Nissl"), ("torch", "torch")):
            if session[name] != known[name]:
                versions = f"{title} {known[name]} and continued with {title} {session[name]}"
                found.append(f"The run began with {versions}: it is not exact.")
    parted = [line for line in contents.log if "parts" in line]
    if parted:
        found.append(
            f"Memory ran out: from step {parted[0]['step']} on, batches passed in up to {parted[-1]['parts']} parts, "
            "and normalisation saw the images of one part at a time."
        )
    return found + [f"Step {line['step']}: {line['warning']}." for line in contents.log if "warning" in line]


def surroundings(contents: Contents) -> Tree:
    """Lay out where the run was made, and whether it can be made again bit for bit."""
    known = contents["env"]
    facts = {key: value for key, value in known.items() if key not in ("command", "exact", "continued")}
    again = "the same seed gives the same bits, on the same machine with as many threads"
    exactness = again if known.get("exact") else "not exact: the same seed may give other bits"
    return facts | ({"exactness": exactness} if "exact" in known else {})


def verdict(layers: list[Tree]) -> str:
    """Say in plain words whether the pre-training changed anything; empty where there is nothing to judge."""
    if not layers:
        return ""
    changes = [layer["relative_change"] for layer in layers]
    if not all(isinstance(change, int | float) and math.isfinite(change) for change in changes):
        return "The pre-training failed: the change of some layer is not a finite number."
    span = f"{percent(min(changes))} to {percent(max(changes))} of their norm (median {percent(median(changes))})"
    moved = f"The {counted(len(layers), 'layer')} moved by {span}"
    still = sum(change < MOVED for change in changes)
    if still == len(changes):
        text = f"The pre-training has learned next to nothing. {moved}."
    elif still:
        text = (
            f"The pre-training has learned in part. {moved}; {counted(still, 'layer')} by less than {percent(MOVED)}."
        )
    else:
        text = f"The pre-training has changed every layer. {moved}."
    units, dead = sum(layer["units"] for layer in layers), sum(layer["dead_units"] for layer in layers)
    text += f" {dead} of {units} units never respond." if dead else f" All {units} units respond."
    worst = max(layers, key=lambda layer: layer["dead_units"] / max(layer["units"], 1))
    if worst["dead_units"] > DEAD * worst["units"]:
        text += f" Most are missing in {worst['name']}: {worst['dead_units']} of {worst['units']}."
    return f"{text} Whether the change helps, only a comparison tells: train again with --pretrain none and untrained."


def _plots(contents: Contents) -> dict[str, str]:
    """Pictures that the run allows, by name."""
    plots = {}
    if len(contents.log) > 1:
        plots["loss"] = curves.loss_curve(contents.log)
        plots["rate"] = curves.rate_curve(contents.log)
    course = contents["pretrain"].get("curves", [])
    if course and "change" in course[0]:
        plots["change"] = curves.change_curve(course)
    elif course:
        plots["pretrain_loss"] = curves.loss_curve(course)
    if contents.rows:
        task, overall = contents.task, contents["metrics"].get("overall", {})
        values = [case_mean(task, rows) for rows in ranked(task, contents.rows).values()]
        level = overall.get(f"trivial_{task.primary.name}")
        trivial = None if level is None else (task.trivial, level)
        plots["cases"] = curves.case_plot(task.primary, values, trivial, overall.get("unit", ""))
    return plots | {name: curves.filter_grid(filters) for name, filters in contents.filters.items()}


def fixed(value: Any, digits: int = 3) -> str:
    """Print a number with fixed digits; a dash where there is none."""
    return "–" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.{digits}f}"


def percent(value: Any) -> str:
    """Print a fraction as a percentage; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.0f} %" if abs(value) >= 0.1 or value == 0 else f"{100 * value:.2g} %"


def thousands(value: Any) -> str:
    """Print a whole number with thin spaces between the thousands."""
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def counted(number: int, thing: str) -> str:
    """Print a number with its noun: 1 mask, 9 masks."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
