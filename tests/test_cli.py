"""The command line: help at once, short flags, settings files, exit codes, and never a traceback."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import tomli_w
from tests.tiny_data import FLAGS, pretrained, tiny_config, write_tiny

from nissl import cli
from nissl.config import Config, to_tree
from nissl.data.cases import Finding
from nissl.data.check import Report
from nissl.errors import DataError, InputError, ResourceError
from nissl.methods.settings import CPS, DTC, Supervised
from nissl.nets.settings import ForeignNet, UNet, VNet
from nissl.pretrain.settings import VAE, Hebbian
from nissl.runs.format import load_config

VERBS = {
    "demo": cli.Demo,
    "check": cli.Check,
    "train": cli.Train,
    "evaluate": cli.Evaluate,
    "compare": cli.Compare,
    "predict": cli.Predict,
    "report": cli.MakeReport,
    "fetch": cli.Fetch,
}
HEAVY = ("torch", "numpy", "scipy", "monai", "matplotlib", "nibabel", "tifffile", "PIL", "jinja2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def run_folder(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    assert cli.run(["train", str(data), "--out", str(out), *FLAGS]) == 0
    return out


def leave(arguments):
    """Exit code of the command line, however it leaves."""
    try:
        return cli.run([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return leaving.code or 0


def words(text):
    """A text without spaces, and without the frames of a help page, whose lines break anywhere."""
    return "".join(re.sub("[╭─╮│╰╯|+]", " ", text).split())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["check", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = f"""
import sys
from nissl.cli import run
try:
    run({arguments})
except SystemExit as leaving:
    assert not leaving.code
print("loaded:", [name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_help_lists_every_verb_with_its_purpose(capsys):
    assert leave(["--help"]) == 0
    page = words(capsys.readouterr().out)
    for verb, kind in VERBS.items():
        assert verb in page and words(kind.__doc__) in page


def fields_of(kind):
    """Every field of a tree of settings, with its docstring."""
    import ast
    import inspect
    import textwrap

    texts = {}
    for each in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body
        for node, following in zip(body, [*body[1:], None]):
            if isinstance(node, ast.AnnAssign):
                name, text = node.target.id, following.value.value if isinstance(following, ast.Expr) else None
                texts[name] = text or texts.get(name)
    yield from texts.items()
    for field in dataclasses.fields(kind):
        inner = field.default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from fields_of(inner)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_the_docstring_of_each_field(verb, capsys):
    assert leave([verb, "--help"]) == 0
    page = words(capsys.readouterr().out)
    listed = dict(fields_of(VERBS[verb]))
    for name, text in listed.items():
        nested = name in {field.name for field in dataclasses.fields(Config)} | {"settings"} and text is None
        assert nested or text, f"{name} has no docstring"
        if text:
            assert words(text) in page, name


@pytest.mark.parametrize(
    ("flags", "where", "value"),
    [
        (["--steps", "7"], "train.steps", 7),
        (["--batch", "3"], "train.batch", 3),
        (["--labels", "5%"], "split.labels", "5%"),
        (["--pretrain", "hebbian"], "pretrain", Hebbian()),
        (["--pretrain=hebbian", "--rule", "swta"], "pretrain", Hebbian(rule="swta")),
        (["--layers", "encoder", "--pretrain", "vae"], "pretrain", VAE(layers="encoder")),
        (["--pretrain", "hebbian", "--handover", "unit-norm"], "pretrain", Hebbian(handover="unit-norm")),
        (["--size", "64"], "data.size", (64,)),
        (["--size", "64", "32"], "data.size", (64, 32)),
        (["--label-map", "binary"], "data.label_map", "binary"),
        (["--net", "vnet"], "net", VNet()),
        (["--net", "monai.networks.nets:BasicUNet"], "net", ForeignNet("monai.networks.nets:BasicUNet")),
        (["--widths", "1", "2", "3", "4", "5"], "net.widths", (1, 2, 3, 4, 5)),
        (["--method", "supervised"], "method", Supervised()),
        (["--method.name", "cps", "--method.ramp-shape", "linear"], "method", CPS(ramp_shape="linear")),
        (["--method", "dtc", "--method.steepness=9"], "method", DTC(steepness=9.0)),
        (["--seed", "3"], "seed", 3),
        (["--train.steps", "7"], "train.steps", 7),
        (["--pretrain.name=hebbian", "--pretrain.rule", "oja"], "pretrain", Hebbian(rule="oja")),
        (["--train.learning-rate", "0.5"], "train.learning_rate", 0.5),
        (["--no-deterministic"], "deterministic", False),
        (["--augment.flip", "False"], "augment.flip", False),
        (["--allow-shared-groups"], "split.allow_shared_groups", True),
        (["--split.transductive"], "split.transductive", True),
        (["--split.seed", "2"], "split.seed", 2),
    ],
)
def test_a_flag_sets_its_field_and_no_other(flags, where, value, tmp_path):
    settings = cli._parse(["train", str(tmp_path), "--out", "x", *flags]).settings
    part, _, name = where.rpartition(".")
    changed = dataclasses.replace(getattr(Config(), part) if part else Config(), **{name: value})
    assert settings == (dataclasses.replace(Config(), **{part: changed}) if part else changed)


def test_dropout_follows_the_widths_that_a_flag_gives(tmp_path):
    flags = ["train", str(tmp_path), "--out", "x", "--widths", "4", "8"]
    assert cli._parse(flags).settings.net == UNet(widths=(4, 8), dropout=(0.05, 0.5))
    path = write_settings(tmp_path, "[net]\nwidths = [2, 4, 8, 16]\n")
    assert cli._parse([*flags, "--config", str(path)]).settings.net == UNet(widths=(4, 8), dropout=(0.05, 0.5))
    path = write_settings(tmp_path, "[net]\nwidths = [2, 4, 8, 16]\ndropout = [0, 0, 0, 0.1]\n")
    assert leave([*flags, "--config", path]) == 2


def write_settings(folder, text):
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_a_settings_file_is_read_and_flags_win_over_it(tmp_path):
    path = write_settings(tmp_path, "seed = 4\n[train]\nsteps = 11\nbatch = 2\n[data]\nsize = [64]\n")
    flags = ["train", str(tmp_path), "--out", "x", "--config", str(path)]
    settings = cli._parse(flags).settings
    assert (settings.seed, settings.train.steps, settings.train.batch, settings.data.size) == (4, 11, 2, (64,))
    settings = cli._parse([*flags, "--steps", "12", "--seed", "0"]).settings
    assert (settings.seed, settings.train.steps, settings.train.batch) == (0, 12, 2)


def test_a_member_that_a_flag_names_takes_those_options_of_the_file_that_it_has(tmp_path, capsys):
    path = write_settings(tmp_path, '[pretrain]\nname = "hebbian"\nsteps = 7\n[method]\nname = "cps"\nweight = 3\n')
    flags = ["train", str(tmp_path), "--out", str(tmp_path / "run"), "--config", str(path)]
    assert cli._parse(flags).settings.pretrain == Hebbian(steps=7)
    settings = cli._parse([*flags, "--pretrain", "vae", "--method", "cps", "--method.ramp", "1"]).settings
    assert (settings.pretrain, settings.method) == (VAE(steps=7), CPS(weight=3.0, ramp=1.0))
    assert leave([*flags, "--method", "supervised"]) == 2
    error = capsys.readouterr().err
    assert "`weight`" in error and "supervised" in error and "cps" in error


@pytest.mark.parametrize(
    ("text", "found", "fix"),
    [
        ("[train]\nstepz = 3\n", "`stepz`", "`steps`"),
        ("[trian]\nsteps = 3\n", "`trian`", "`train`"),
        ("[train]\nsteps = 0\n", "0", "train.steps"),
        ("[train]\nsteps = 'many'\n", "'many'", "correct"),
        ("steps =\n", "line 1", "correct the line"),
    ],
)
def test_a_fault_in_a_settings_file_is_named(text, found, fix, tmp_path, capsys):
    path = write_settings(tmp_path, text)
    assert leave(["train", tmp_path, "--out", tmp_path / "run", "--config", path]) == 2
    error = capsys.readouterr().err
    assert found in error and fix in error and not (tmp_path / "run").exists()


def test_a_settings_file_that_is_gone_is_named(tmp_path, capsys):
    assert leave(["train", tmp_path, "--out", tmp_path / "run", "--config", tmp_path / "gone.toml"]) == 2
    assert "gone.toml" in capsys.readouterr().err


def test_resume_takes_the_settings_of_the_run(tmp_path):
    (tmp_path / "config.toml").write_text(tomli_w.dumps(to_tree(tiny_config(seed=5))))
    verb = cli._parse(["train", "data", "--out", str(tmp_path), "--resume"])
    assert verb.resume and verb.settings == tiny_config(seed=5)
    assert cli._parse(["train", "data", "--out", str(tmp_path), "--resume", "--steps", "9"]).settings.train.steps == 9


def test_resume_goes_on_and_refuses_other_settings(run_folder, data, capsys):
    assert leave(["train", data, "--out", run_folder, "--resume"]) == 0
    assert leave(["train", data, "--out", run_folder, "--resume", "--steps", "4"]) == 2
    assert "train.steps was 3, is 4" in capsys.readouterr().err


def test_resume_of_what_is_no_run_is_refused(tmp_path, capsys):
    assert leave(["train", tmp_path, "--out", tmp_path / "gone", "--resume"]) == 2
    assert "gone" in capsys.readouterr().err and not (tmp_path / "gone").exists()


def test_train_says_what_is_next(run_folder, data, tmp_path, capsys):
    assert leave(["train", data, "--out", tmp_path / "run", *FLAGS, "--seed", "2"]) == 0
    shown = capsys.readouterr()
    assert f"nissl evaluate {tmp_path / 'run'}" in shown.out and "training: 3/3" in shown.err
    assert load_config(tmp_path / "run" / "config.toml").seed == 2


def test_evaluate_prints_one_json_object_on_stdout(run_folder, capsys):
    assert leave(["evaluate", run_folder, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    keys = {"dice", "dice_ci", "pooled_dice", "hd95", "n_cases", "trivial_dice"}
    assert keys <= set(tree["overall"]) and keys <= set(tree["classes"]["foreground"])


def test_evaluate_prints_a_table_with_interval_and_trivial_score(run_folder, capsys):
    assert leave(["evaluate", run_folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["class", "foreground"]
    assert "95 % interval" in lines[0] and "trivial" in lines[0] and any("warning: Only 2" in line for line in lines)


def test_predict_and_report_say_what_they_wrote(run_folder, data, tmp_path, capsys):
    leave(["evaluate", run_folder])
    assert leave(["predict", run_folder, data / "images", "--out", tmp_path / "masks"]) == 0
    assert leave(["report", run_folder]) == 0
    shown = capsys.readouterr().out
    assert "8 masks written" in shown and str(run_folder / "report.html") in shown


def test_predict_leaves_with_3_where_an_image_failed(run_folder, data, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "good.png").write_bytes((data / "images" / "field000.png").read_bytes())
    (tmp_path / "images" / "bad.png").write_bytes(b"not a picture")
    assert leave(["predict", run_folder, tmp_path / "images", "--out", tmp_path / "masks"]) == 3
    shown = capsys.readouterr()
    assert "1 masks written" in shown.out and "1 images failed" in shown.out and "bad.png" in shown.err


def test_check_leaves_with_3_where_there_are_faults_and_0_where_not(data, tmp_path, capsys):
    assert leave(["check", data]) == 0
    assert "no fault" in capsys.readouterr().out
    broken = write_tiny(tmp_path / "data")
    (broken / "images" / "field000.png").write_bytes(b"")
    (broken / "masks" / "field001.png").write_bytes(b"xx")
    assert leave(["check", broken]) == 3
    shown = capsys.readouterr().out
    assert "field000.png" in shown and "field001.png" in shown and "2 faults to fix" in shown
    assert leave(["check", broken, "--json"]) == 3
    tree = json.loads(capsys.readouterr().out)
    assert {finding["level"] for finding in tree["findings"]} >= {"error"} and tree["facts"]["images"] == 8


def raising(error):
    def verb(self):
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("a", "b", "c", "d"), 2, "error: a\n  found: b\n  expected: c\n  next step: d"),
        (DataError("a", "b", "c", "d"), 3, "error: a"),
        (ResourceError("a", "b", "c", "d"), 4, "error: a"),
        (MemoryError(), 4, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), 4, "out of memory"),
        (PermissionError(13, "Permission denied", "/some/file"), 4, "/some/file\n  found: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, ""),
    ],
)
def test_a_fault_becomes_its_exit_code_and_a_text(error, code, said, monkeypatch, capsys):
    monkeypatch.setattr(cli.Check, "__call__", raising(error))
    assert leave(["check", "x"]) == code
    shown = capsys.readouterr()
    assert said in shown.err and "Traceback" not in shown.err and not shown.out


def test_an_error_of_ours_is_not_hidden(monkeypatch):
    """A bug is to be seen whole: only faults that the user can mend are made short."""
    monkeypatch.setattr(cli.Check, "__call__", raising(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes"):
        cli.run(["check", "x"])


def test_main_leaves_with_the_code_of_run(monkeypatch):
    monkeypatch.setattr(cli, "run", lambda arguments: len(arguments))
    with pytest.raises(SystemExit) as leaving:
        cli.main(["a", "b", "c"])
    assert leaving.value.code == 3


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupted_training_says_how_to_go_on(monkeypatch, capsys, tmp_path, data, begun):
    from nissl import api

    def stopped(*_):
        raise SystemExit(130)

    monkeypatch.setattr(api, "train", stopped)
    if begun:
        (tmp_path / "config.toml").touch()
    assert leave(["train", data, "--out", tmp_path]) == 130
    assert (f"nissl train {data} --out {tmp_path} --resume" in capsys.readouterr().err) is begun


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing subcommand"),
        (["trian"], "train"),
        (["train"], "--out"),
        (["train", "x", "--out", "y", "--stepz", "3"], "--steps"),
        (["train", "x", "--out", "y", "--steps", "three"], "three"),
        (["train", "x", "--out", "y", "--pretrain", "hebbian", "--rule", "hebbb"], "hebbb"),
        (["train", "x", "--out", "y", "--rule", "swta"], "--rule"),
        (["train", "x", "--out", "y", "--method.weight", "1"], "belongs to entropy, mean-teacher"),
        (["train", "x", "--out", "y", "--pretrain", "vae", "--pretrain.betta", "1"], "`beta`"),
        (["train", "x", "--out", "y", "--net", "vnet", "--net.dropout", "0"], "belongs to unet"),
        (["train", "x", "--out", "y", "--method", "unimatsch"], "`unimatch`"),
        (["train", "x", "--out", "y", "--steps", "0"], "train.steps"),
        (["train", "x", "--out", "y", "--seed", "-1"], "seed"),
        (["train", "x", "--out", "y", "--widths", "4", "8", "--net.dropout", "0.1"], "net.dropout"),
        (["train", "x", "--out", "y", "--widths", "4", "8", "--net.dropout", *map(str, UNet().dropout)], "net.dropout"),
        (["evaluate"], "PATH"),
        (["evaluate", "gone"], "gone"),
        (["evaluate", "gone", "--on", "train"], "train"),
        (["report", "gone"], "gone"),
        (["compare", "gone", "gone"], "gone"),
        (["train", "x", "--out", "y", "--split.seed", "-1"], "split.seed"),
        (["predict", "gone", "gone", "--out", "gone"], "gone"),
        (["check", "gone"], "gone"),
        (["fetch", "nothing", "gone"], "glas"),
    ],
)
def test_a_wrong_command_leaves_with_2_and_names_the_mistake(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert leave(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err + shown.out and "Traceback" not in shown.err + shown.out
    assert not list(tmp_path.iterdir())


def test_the_version_is_told(capsys):
    import nissl

    assert leave(["--version"]) == 0 and capsys.readouterr().out == f"nissl {nissl.__version__}\n"


def test_a_data_set_is_named_and_not_a_path(capsys):
    with pytest.raises(SystemExit):
        cli.run(["fetch", "--help"])
    assert "NAME" not in (shown := capsys.readouterr().out).split() or "PATH PATH" not in shown
    assert shown.split("fetch", 1)[1].splitlines()[0].count("PATH") == 2  # the folder and --archive


def test_of_several_processes_the_first_prints_the_end(tmp_path, capsys, monkeypatch):
    from nissl import api

    monkeypatch.setattr(api, "train", lambda *others: None)
    for rank, printed in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert leave(["train", tmp_path, "--out", tmp_path / "run"]) == 0
        assert bool(capsys.readouterr().out) is printed


def test_fetch_without_a_terminal_does_not_wait_for_an_answer(tmp_path, capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert leave(["fetch", "msd-hippocampus", tmp_path / "data"]) == 2
    shown = capsys.readouterr()
    assert "terms not accepted" in shown.err and not (tmp_path / "data").exists()


def process(arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "nissl", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def test_a_real_process_prints_no_traceback(tmp_path):
    done = process(["train", tmp_path / "gone", "--out", tmp_path / "run"])
    assert done.returncode == 2 and "Traceback" not in done.stderr and not done.stdout
    assert all(part in done.stderr for part in ("gone", "found:", "expected:", "next step:"))
    assert not (tmp_path / "run").exists()


def test_a_reader_that_leaves_early_gets_no_traceback():
    piped = f"{sys.executable} -m nissl train --help | head -n 1"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: nissl train") and done.stderr == ""


def test_check_text_has_all_parts_of_a_finding():
    finding = Finding("warning", "somewhere", "this", "that", "mend it")
    text = cli._check_text(Report((finding,), {"images": 3}))
    assert "warning: somewhere\n    found: this\n  expected: that\n  next step: mend it" in text
    assert text.endswith("images: 3\nno fault, 1 warnings")


def test_a_run_can_take_over_the_stage_1_of_another(data, tmp_path, capsys):
    hebbian = [*pretrained(), *FLAGS]
    first, second = tmp_path / "first", tmp_path / "second"
    assert leave(["train", data, "--out", first, *hebbian]) == 0
    assert leave(["train", data, "--out", second, *hebbian, "--method", "entropy", "--pretrained", first]) == 0
    assert json.loads((second / "env.json").read_text())["stage_1_of"] == "../first"
    several = ["train", data, "--out", tmp_path / "series", *hebbian, "--seeds", "2", "--pretrained", first]
    assert leave(several) == 2 and not (tmp_path / "series").exists()
    assert "--pretrained" in capsys.readouterr().err
