import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tests.reporting.fake_run import logged, pretraining

from nissl.metrics.metric import SEGMENTATION, Metric
from nissl.reporting.curves import case_plot, change_curve, filter_grid, loss_curve, rate_curve, smooth


def decoded(uri):
    kind, content = uri.removeprefix("data:").split(";base64,")
    return kind, base64.b64decode(content)


def test_smooth_is_the_mean_of_a_window_that_shrinks_at_the_ends():
    values = np.random.default_rng(0).standard_normal(200)
    values[50] = np.nan
    expected = [np.nanmean(values[max(i - 5, 0) : i + 6]) for i in range(200)]
    np.testing.assert_allclose(smooth(values), expected, atol=1e-12)
    short = np.array([3.0, 1.0, np.nan])
    np.testing.assert_equal(smooth(short), short)


def test_plots_are_svg_without_links_to_elsewhere():
    rng = np.random.default_rng(0)
    log = list(logged(300, rng))
    stage = pretraining(10, rng)
    for uri in (
        loss_curve(log),
        rate_curve(log),
        change_curve(stage["curves"]),
        change_curve([{"step": 1, "change": [0.1]}]),
        case_plot(SEGMENTATION[0], [0.3, 0.5, 0.9], ("foreground everywhere", 0.4), "px"),
        case_plot(Metric("error", "error", higher_is_better=False, unit="mm"), [8.0, 2.0], None, ""),
    ):
        kind, content = decoded(uri)
        assert kind == "image/svg+xml"
        links = [v for e in ElementTree.fromstring(content).iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)


def test_a_log_with_lost_values_is_drawn():
    log = [{"step": 1, "loss": 0.9, "terms": {"dice": 0.9}}, {"step": 2, "loss": None, "learning_rate": 1e-3}]
    assert loss_curve(log)
    assert rate_curve(log)


def test_plots_leave_no_setting_behind():
    import matplotlib

    before = dict(matplotlib.rcParams)
    rate_curve([{"step": 1, "learning_rate": 0.1}, {"step": 2, "learning_rate": 0.2}])
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("shape", [(10, 3, 3, 3), (1, 1, 5, 5), (4, 2, 3, 3), (100, 3, 3, 3, 3)])
def test_filter_tiles_hold_the_scaled_weights(shape):
    filters = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kind, content = decoded(filter_grid(filters))
    sheet = np.asarray(Image.open(io.BytesIO(content)))[6::12, 6::12]
    flat = filters[:, :, 1] if filters.ndim == 5 else filters
    size = flat.shape[-1] + 1
    assert kind == "image/png"
    for index, kernel in enumerate(flat[:64]):
        colours = kernel if len(kernel) == 3 else np.repeat(kernel.mean(axis=0)[None], 3, axis=0)
        expected = 127.5 + 127.5 * colours / np.abs(colours).max()
        row, column = index // 8 * size, index % 8 * size
        tile = sheet[row : row + size - 1, column : column + size - 1]
        np.testing.assert_allclose(np.moveaxis(tile, -1, 0), expected, atol=0.51)
    assert sheet.shape[0] == size * -(-min(shape[0], 64) // 8) - 1


def test_filters_of_zero_are_grey():
    _, content = decoded(filter_grid(np.zeros((2, 3, 3, 3))))
    assert set(np.asarray(Image.open(io.BytesIO(content)))[:12, :12].ravel().tolist()) == {128}
