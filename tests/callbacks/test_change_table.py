from __future__ import annotations

from lightning_mllm.callbacks.change_table import draw_change_table
from lightning_mllm.callbacks.probe_table import draw_number_table


def test_each_measure_has_its_interval_before_the_training_and_at_the_last_step() -> None:
    rows = []
    for stage, step, value in (("val", 0, 0.7), ("val", 4, 0.5), ("test", 4, 0.4)):
        ends = {"value": value, "low_95": value - 0.1, "high_95": value + 0.1, "n": 60}
        where = {"stage": stage, "step": step}
        rows.append({**where, "measure": "overlap", "of": "10", "chance": 10 / 59, **ends})
    rows.append({**rows[0], "measure": "unexplained", "of": "object", "chance": 1.0})

    table = draw_change_table(rows)

    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    overlap = "overlap of 10 (chance 0.169)"
    assert list(zip(*cells, strict=True)) == [
        (overlap, "validation", "60", "0.700 [0.600, 0.800]", "0.500 [0.400, 0.600]"),
        ("unexplained, object patches", "validation", "60", "0.700 [0.600, 0.800]", ""),
        (overlap, "test", "60", "", "0.400 [0.300, 0.500]"),
    ]


def test_each_number_has_its_r2() -> None:
    ends = {"r2": 0.5, "low_95": 0.4, "high_95": 0.6, "n_test": 20}
    row = {"stage": "test", "step": 0, "point": "post-mean", "target": "age", **ends}

    table = draw_number_table([row])

    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert list(zip(*cells, strict=True)) == [
        ("post-mean, age", "test", "20", "0.500 [0.400, 0.600]", "")
    ]
