"""The loss curve as a picture."""

from xml.etree import ElementTree

import pytest
from microstages_training.curve import draw, smooth, ticks

CURVE = [{"step": i, "loss": 5 / i} for i in range(1, 60)]
HELD_OUT = [{"step": 0, "loss": 5.5}, {"step": 30, "loss": 1.0}, {"step": 59, "loss": 0.5}]


def elements(svg, name):
    return ElementTree.fromstring(svg).findall(f".//{{http://www.w3.org/2000/svg}}{name}")


def test_it_shows_both_losses_with_axes_that_say_what_they_are():
    svg = draw(CURVE, HELD_OUT)
    said = [e.text for e in elements(svg, "text")]
    assert {"optimizer step", "loss per trained token (nats)", "held out: 5.500 → 0.500"} <= set(said)
    assert len(elements(svg, "circle")) == 3
    curves = [e for e in elements(svg, "polyline") if len(e.get("points").split()) == len(CURVE)]
    assert len(curves) == 2  # raw and smoothed


def test_every_point_lies_in_the_picture():
    for line in elements(draw(CURVE, HELD_OUT), "polyline"):
        for x, y in (map(float, p.split(",")) for p in line.get("points").split()):
            assert 0 <= x <= 760 and 0 <= y <= 420


def test_equal_losses_give_equal_bytes():
    assert draw(CURVE, HELD_OUT) == draw(list(CURVE), list(HELD_OUT))


@pytest.mark.parametrize(
    ("curve", "held_out"), [(CURVE[:1], []), (CURVE, []), ([{"step": 1, "loss": 0.0}], HELD_OUT[:1])]
)
def test_short_runs_and_runs_without_held_out_rows_have_a_picture_too(curve, held_out):
    assert elements(draw(curve, held_out), "polyline")


def test_smoothing_keeps_a_straight_line_and_both_ends():
    line = [float(v) for v in range(100)]
    assert smooth(line) == pytest.approx(line)


@pytest.mark.parametrize(
    ("low", "high", "first", "last"), [(0, 9.4, 0, 10), (0.38, 2.5, 0, 2.5), (0, 69, 0, 80), (2, 2.3, 2, 2.3)]
)
def test_ticks_are_round_and_enclose(low, high, first, last):
    found = ticks(low, high)
    assert found[0] == first and found[-1] == pytest.approx(last, abs=0.21 * (high - low))
    assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 10
