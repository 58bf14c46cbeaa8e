"""The picture of the scale benchmark: well-formed, with every point, on a scale that holds the worst round."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.curves import draw
from benchmarks.scale import CURVES

SVG = "{http://www.w3.org/2000/svg}"


def _results(*, worst: float = 61.0) -> dict[str, Any]:
    rounds = [{"worker_us": 50.0, "redis_us": 7.0}, {"worker_us": worst, "redis_us": 9.0}]
    return {
        "curves": [
            {
                "name": curve.name,
                "title": curve.title,
                "points": [
                    {"x": curve.x(point), "worker_us": 50.0, "redis_us": 8.0, "rounds": rounds}
                    for point in curve.points
                ],
            }
            for curve in CURVES
        ]
    }


def test_every_point_of_both_lines_is_drawn() -> None:
    picture = ElementTree.fromstring(draw(_results()))

    assert len(picture.findall(f"{SVG}circle")) == 2 * sum(len(curve.points) for curve in CURVES)
    assert {curve.title for curve in CURVES} <= {text.text for text in picture.findall(f"{SVG}text")}


@pytest.mark.parametrize("worst", [0.5, 61.0, 100.0, 7_500.0])
def test_nothing_lies_outside_of_the_picture(worst: float) -> None:
    picture = ElementTree.fromstring(draw(_results(worst=worst)))
    height = float(picture.attrib["height"])

    ends = [float(line.attrib[name]) for line in picture.findall(f"{SVG}line") for name in ("y1", "y2")]
    assert all(0 < y < height for y in ends)


def test_machine_that_tells_no_cpu_time_of_processes_gets_the_line_of_redis() -> None:
    results = _results()
    for curve in results["curves"]:
        for point in curve["points"]:
            del point["worker_us"]
            for one in point["rounds"]:
                one.pop("worker_us", None)

    picture = ElementTree.fromstring(draw(results))

    assert len(picture.findall(f"{SVG}circle")) == sum(len(curve.points) for curve in CURVES)
