"""The picture of the scale benchmark: well-formed, with every point, on a scale that holds the worst round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from benchmarks.curves import draw
from benchmarks.scale import CURVES, main

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


def test_picture_takes_its_place_in_the_readme_once(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    readme, results, picture = tmp_path / "README.md", tmp_path / "scale.json", tmp_path / "docs" / "scale.svg"
    readme.write_text(text, encoding="utf-8")
    picture.parent.mkdir()
    results.write_text(json.dumps({**_results(), "rounds": 3, "tasks": 20_000}), encoding="utf-8")

    for _ in range(2):
        done = CliRunner().invoke(main, ["--load", str(results), "--svg", str(picture), "--update", str(readme)])
        assert done.exit_code == 0, done.output

    lines = readme.read_text(encoding="utf-8").splitlines()
    assert lines.count("![What a task costs as a system grows](docs/scale.svg)") == 1
    assert set(text.splitlines()) - set(lines) == set()
    assert picture.read_text(encoding="utf-8").startswith("<svg")


def test_place_of_the_picture_that_is_not_there_is_said(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "scale.json"
    readme.write_text("# Nothing\n", encoding="utf-8")
    results.write_text(json.dumps({**_results(), "rounds": 3, "tasks": 20_000}), encoding="utf-8")

    done = CliRunner().invoke(
        main, ["--load", str(results), "--svg", str(tmp_path / "scale.svg"), "--update", str(readme)]
    )

    assert done.exit_code == 2
    assert "has no lines" in done.output
    assert readme.read_text(encoding="utf-8") == "# Nothing\n"


def test_curve_that_goes_far_beyond_the_others_leaves_them_their_height() -> None:
    results = json.loads(json.dumps(_results()))
    lows = {circle.attrib["cy"] for circle in ElementTree.fromstring(draw(results)).findall(f"{SVG}circle")}
    for one in results["curves"][1]["points"][-1]["rounds"]:
        one["worker_us"] = 7_500.0

    picture = ElementTree.fromstring(draw(results))

    heights = [circle.attrib["cy"] for circle in picture.findall(f"{SVG}circle")]
    assert sum(height in lows for height in heights) == 2 * sum(
        len(curve.points) for curve in CURVES if curve is not CURVES[1]
    )
    assert {"80", "8000"} <= {text.text for text in picture.findall(f"{SVG}text")}
    ends = [float(line.attrib["x2"]) for line in picture.findall(f"{SVG}line")]
    assert max(ends) < float(picture.attrib["width"])
