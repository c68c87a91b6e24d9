"""Cases that lie in space in several ways: named with how many, and quiet where they agree."""

import nibabel
import numpy as np

from nissl.data.orientation import differences, direction_of


def test_directions_are_those_of_nibabel():
    for codes in ("RAS", "LPS", "ASR", "IPL"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
        )
        image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4)).as_reoriented(turn)
        assert direction_of(image.affine) == codes
    assert direction_of(None) == ""


def test_differences_are_counted_and_named():
    places = {f"scan{n}": ((1, 1, 5) if n % 3 else (0.5, 0.5, 0.5), "RAS" if n % 4 else "LAS") for n in range(12)}
    directions, spacings = (found for found, _, _ in differences(places))
    assert "RAS (9 cases, such as scan1)" in directions and "LAS (3 cases, such as scan0)" in directions
    assert "1 x 1 x 5 mm (8 cases, such as scan1)" in spacings and "0.5 x 0.5 x 0.5 mm (4 cases" in spacings


def test_cases_that_agree_or_state_nothing_are_no_finding():
    assert not [*differences({"a": ((1.0, 1.0), ""), "b": ((1.05, 1.0), ""), "c": (None, "")})]
    assert not [*differences({"a": ((1, 1, 5), "RAS"), "b": (None, ""), "c": ((1, 1, 5.2), "RAS")})]
    assert not [*differences({})]
    assert len([*differences({"a": ((1, 1, 5), "RAS"), "b": ((1, 1, 6), "RAS")})]) == 1
