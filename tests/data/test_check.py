"""One pass lists every fault with its file; sound data show none, and the facts are those of the files."""

import numpy as np
import pytest
from tests.shared import shared
from tests.three_cases import noise, square, write_three

from nissl.config import DataConfig
from nissl.data.check import Accepted, check
from nissl.errors import InputError
from nissl.imageio.formats import write_image, write_mask


@pytest.fixture
def root(tmp_path):
    return write_three(tmp_path)


def listed(root, **settings):
    """Level and file name of each finding."""
    return [
        (finding.level, finding.where.rpartition("/")[2], finding.found)
        for finding in check(root, DataConfig(**settings)).findings
    ]


def only(root, level, name, **settings):
    """Text of the only finding, which must be of that level and file."""
    findings = check(root, DataConfig(**settings)).findings
    assert len(findings) == 1, findings
    finding = findings[0]
    assert finding.level == level and name in finding.where and finding.expected and finding.fix
    return finding


def test_sound_data_have_no_findings_and_true_facts(root):
    (root / "cases.csv").write_text("id,group,split\na,p1,train\nb,p2,test\nc,p1,\n")
    seen = []
    report = check(root, DataConfig(), progress=lambda done, total: seen.append((done, total)))
    assert report.findings == report.errors == ()
    assert seen == [(1, 3), (2, 3), (3, 3)]
    facts = report.facts
    assert (facts["images"], facts["masks"], facts["groups"], facts["dims"]) == (3, 2, 2, [2])
    assert facts["shapes"] == {"32 x 40": 3} and facts["dtypes"] == {"uint8": 3} and facts["channels"] == {"1": 3}
    assert facts["splits"] == {"train": 1, "test": 1}
    share = 144 / (32 * 40)
    assert facts["class_frequencies"] == pytest.approx({"background": 1 - share, "foreground": share})


def test_all_faults_are_listed_in_one_pass(root):
    (root / "images" / "a.png").write_bytes((root / "images" / "a.png").read_bytes()[:200])
    (root / "masks" / "b.png").write_bytes(b"")
    write_image(root / "images" / "d.tif", np.full((1, 32, 40), np.nan, np.float32))
    write_mask(root / "masks" / "d.png", square(7), None)
    write_image(root / "images" / "e.png", noise(5, (3, 32, 40)))
    write_mask(root / "masks" / "e.png", square(shape=(32, 38)), None)
    write_image(root / "images" / "f.png", noise(6, (1, 9, 40)))
    write_mask(root / "masks" / "z.png", square(), None)
    write_image(root / "images" / "g.png", noise(2))
    (root / "cases.csv").write_text("id,split\nnone,test\na,later\n")
    found = listed(root)
    expected = [
        ("error", "z.png", "without image"),
        ("error", "cases.csv, line 2", "`none`"),
        ("error", "cases.csv, line 3", "`later`"),
        ("error", "a.png", "truncated"),
        ("error", "b.png", "empty file"),
        ("error", "d.tif", "NaN or infinity in 1280 of 1280"),
        ("error", "d.png", "unexpected values 7 (144 pixels)"),
        ("error", "e.png", "image 32 x 40, mask 32 x 38"),
        ("warning", "f.png", "9 x 40 pixels"),
        ("error", "e.png", "3 channels"),
        ("warning", "g.png", "the same pixels in c.png, g.png"),
    ]
    assert [finding[:2] for finding in found] == [finding[:2] for finding in expected]
    for (_, _, said), (_, _, wanted) in zip(found, expected, strict=True):
        assert wanted in said


def test_a_constant_image_is_a_warning(root):
    write_image(root / "images" / "c.png", np.full((1, 32, 40), 7, np.uint8))
    assert "constant" in only(root, "warning", "c.png").found


def test_the_limit_is_a_finding_with_its_setting(root):
    findings = check(root, DataConfig(limit_gib=1e-6)).findings
    assert len(findings) == 5 and all("--data.limit-gib" in finding.fix for finding in findings)


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(InputError):
        check(tmp_path, DataConfig())


def test_checking_changes_no_file(root):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*.png")}
    check(root, DataConfig())
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def test_real_instance_masks_need_the_binary_map_and_then_are_sound():
    root = shared("glas")
    assert check(root, DataConfig(label_map="binary"), accepted=Accepted(shared_groups=True)).errors == ()
    findings = check(root, DataConfig()).findings
    values = [finding for finding in findings if "groups" not in finding.found]
    assert len(values) > 100
    assert all("unexpected values" in finding.found and "--label-map binary" in finding.fix for finding in values)


def test_real_volumes_are_sound():
    report = check(shared("hippocampus"), DataConfig())
    assert report.findings == () and report.facts["dims"] == [3]
    assert list(report.facts["class_frequencies"]) == ["background", "Anterior", "Posterior"]


def test_real_mixture_of_gray_and_stained_images_is_found():
    report = check(shared("dsb2018"), DataConfig(label_map="threshold=127"))
    stained = [finding for finding in report.findings if finding.found == "3 channels"]
    assert len(stained) == report.facts["channels"]["3"] and set(report.errors) <= set(stained)
